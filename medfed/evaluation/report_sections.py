"""Tables of a report that only some runs have: hospitals left out, personal models, changed images.

Each function returns what the template draws, or None where the run has no such rows. Every
number is a row's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from medfed.evaluation.robustness import CONDITION, UNCHANGED
from medfed.evaluation.rows import ALL_SITES, FEDERATED, Row, local, personal, without

Places = Sequence[str]


class Rows:
    """A run's rows of one metric, structure, split and round, by what they are about."""

    def __init__(
        self, rows: Iterable[Row], metric: str, structure: str | None, split: str, round: int
    ) -> None:
        self._by = {
            (row.site, row.model, row.group, row.against): row
            for row in rows
            if (row.metric, row.structure, row.split, row.round) == (metric, structure, split, round)
        }

    def of(self, site: str, model: str, against: str | None = None, group: str | None = None) -> Row | None:
        """Return one row, or None where it is not there or has no value."""
        row = self._by.get((site, model, group, against))
        return row if row is not None and row.value is not None else None

    def groups(self, prefix: str) -> list[str]:
        """Return the groups that begin with a prefix."""
        return sorted(
            {group for _, _, group, _ in self._by if group is not None and group.startswith(prefix)}
        )


def left_out(rows: Rows, sites: Places) -> list[dict[str, Any]] | None:
    """Return, for each hospital, the models with and without it and its own, on its patients."""
    lines = [
        {
            "site": site,
            "with": rows.of(site, FEDERATED),
            "without": rows.of(site, without(site)),
            "alone": rows.of(site, local(site)),
            "difference": rows.of(site, FEDERATED, against=without(site)),
        }
        for site in sites
    ]
    return lines if any(line["without"] for line in lines) else None


def methods(rows: Rows, sites: Places) -> list[str]:
    """Return how the differences to the models without a hospital were found, each method once."""
    every = (
        rows.of(place, FEDERATED, against=without(site)) for site in sites for place in (*sites, ALL_SITES)
    )
    return sorted({row.method for row in every if row is not None and row.method is not None})


def contributions(
    rows: Rows, sites: Places, held_out: Places, pooled: Callable[[str], bool]
) -> dict[str, Any] | None:
    """Return what the federated model loses at each place when one hospital never took part."""
    places = [place for place in (*held_out, ALL_SITES) if pooled(place)]
    table = {site: [rows.of(place, FEDERATED, against=without(site)) for place in places] for site in sites}
    if not any(cell for cells in table.values() for cell in cells):
        return None
    lines = [{"site": site, "cells": cells} for site, cells in table.items()]
    # A model has no Dice where it rightly saw nothing, so that pairs may be of other numbers of patients.
    columns = zip(*table.values(), strict=True)
    patients = [sorted({row.n for row in column if row and row.n is not None}) for column in columns]
    return {"places": list(zip(places, patients, strict=True)), "lines": lines}


def personalised(rows: Rows, sites: Places) -> list[dict[str, Any]] | None:
    """Return, for each hospital, the federated model and the one personalised for it, on its patients."""
    lines = [
        {
            "site": site,
            "federated": rows.of(site, FEDERATED),
            "personal": rows.of(site, personal(site)),
            "difference": rows.of(site, FEDERATED, against=personal(site)),
        }
        for site in sites
    ]
    return lines if any(line["personal"] for line in lines) else None


def robustness(rows: Rows, places: Places) -> dict[str, Any] | None:
    """Return what each change of the images costs at each place."""
    names = rows.groups(CONDITION)
    shown = [place for place in places if any(rows.of(place, FEDERATED, UNCHANGED, name) for name in names)]
    if not shown:
        return None
    lines = [
        {
            "name": name.removeprefix(CONDITION),
            "cells": [rows.of(place, FEDERATED, UNCHANGED, name) for place in shown],
        }
        for name in names
    ]
    return {
        "places": shown,
        "unchanged": [rows.of(place, FEDERATED) for place in shown],
        "lines": lines,
    }
