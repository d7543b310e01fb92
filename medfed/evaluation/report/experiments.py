"""Tables that only some runs have: hospitals left out, personal models, perturbed images.

Each function returns what the template shows, or None where the run has no such rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medfed.evaluation.report.focus import FocusRows
from medfed.evaluation.robustness import CONDITION, UNCHANGED
from medfed.evaluation.rows import ALL_SITES, FEDERATED, local, personal, without

Places = Sequence[str]


def left_out(rows: FocusRows, sites: Places) -> list[dict[str, Any]] | None:
    """Return, for each hospital, the models with and without it and its own, on its patients."""
    lines = [
        {
            "site": site,
            "with": rows.valued(site, FEDERATED),
            "without": rows.valued(site, without(site)),
            "alone": rows.valued(site, local(site)),
            "difference": rows.valued(site, FEDERATED, against=without(site)),
        }
        for site in sites
    ]
    return lines if any(line["without"] for line in lines) else None


def methods(rows: FocusRows, sites: Places) -> list[str]:
    """Return the methods behind the differences to the models without a hospital, each once."""
    every = (
        rows.valued(place, FEDERATED, against=without(site))
        for site in sites
        for place in (*sites, ALL_SITES)
    )
    return sorted({row.method for row in every if row is not None and row.method is not None})


def contributions(rows: FocusRows, sites: Places, held_out: Places) -> dict[str, Any] | None:
    """Return what the federated model loses at each place when one hospital never took part."""
    places = [place for place in (*held_out, ALL_SITES) if rows.valued(place, FEDERATED)]
    table = {
        site: [rows.valued(place, FEDERATED, against=without(site)) for place in places] for site in sites
    }
    if not any(cell for cells in table.values() for cell in cells):
        return None
    lines = [{"site": site, "cells": cells} for site, cells in table.items()]
    # A model has no Dice where it correctly saw nothing, so pairs may be of different numbers of patients.
    columns = zip(*table.values(), strict=True)
    patients = [sorted({row.n for row in column if row and row.n is not None}) for column in columns]
    return {"places": list(zip(places, patients, strict=True)), "lines": lines}


def personalised(rows: FocusRows, sites: Places) -> list[dict[str, Any]] | None:
    """Return, for each hospital, the federated model and the one personalised for it, on its patients."""
    lines = [
        {
            "site": site,
            "federated": rows.valued(site, FEDERATED),
            "personal": rows.valued(site, personal(site)),
            "difference": rows.valued(site, FEDERATED, against=personal(site)),
        }
        for site in sites
    ]
    return lines if any(line["personal"] for line in lines) else None


def robustness(rows: FocusRows, places: Places) -> dict[str, Any] | None:
    """Return what each change of the images costs at each place."""
    names = rows.groups(CONDITION)
    shown = [
        place for place in places if any(rows.valued(place, FEDERATED, UNCHANGED, name) for name in names)
    ]
    if not shown:
        return None
    lines = [
        {
            "name": name.removeprefix(CONDITION),
            "cells": [rows.valued(place, FEDERATED, UNCHANGED, name) for place in shown],
        }
        for name in names
    ]
    return {"places": shown, "unchanged": [rows.valued(place, FEDERATED) for place in shown], "lines": lines}
