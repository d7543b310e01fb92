"""Tables of optional experiments: leaving a hospital out, personalised models, perturbed images.

Each function returns the values for the template, or None if the run has no such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from medfed.evaluation.report.focus import FocusRows
from medfed.evaluation.robustness import CONDITION, UNCHANGED
from medfed.evaluation.rows import ALL_SITES, FEDERATED, is_of_seed, local, without
from medfed.runs.facts import SearchFacts, TrialFacts

Places = Sequence[str]


def against_federated(
    rows: FocusRows, sites: Places, other: Callable[[str], str]
) -> list[dict[str, Any]] | None:
    """Return one line per hospital: the federated model against another model, on the hospital's patients.

    `other` names that model for a hospital (`without` or `personal`); its local model is given as well.
    """
    lines = [
        {
            "site": site,
            "federated": rows.valued(site, FEDERATED),
            "other": rows.valued(site, other(site)),
            "alone": rows.valued(site, local(site)),
            "difference": rows.valued(site, FEDERATED, against=other(site)),
        }
        for site in sites
    ]
    return lines if any(line["other"] for line in lines) else None


def methods(rows: FocusRows, sites: Places) -> list[str]:
    """Return the distinct methods of the differences to models trained without a hospital."""
    every = (
        rows.valued(place, FEDERATED, against=without(site))
        for site in sites
        for place in (*sites, ALL_SITES)
    )
    return sorted({row.method for row in every if row is not None and row.method is not None})


def contributions(rows: FocusRows, sites: Places, held_out: Places) -> dict[str, Any] | None:
    """Return, for each hospital, what the federated model loses at each site if it is trained without it."""
    places = [place for place in (*held_out, ALL_SITES) if rows.valued(place, FEDERATED)]
    table = {
        site: [rows.valued(place, FEDERATED, against=without(site)) for place in places] for site in sites
    }
    if not any(cell for cells in table.values() for cell in cells):
        return None
    lines = [{"site": site, "cells": cells} for site, cells in table.items()]
    # Dice is undefined where a model correctly predicted nothing, so the number of pairs may vary.
    columns = zip(*table.values(), strict=True)
    patients = [sorted({row.n for row in column if row and row.n is not None}) for column in columns]
    return {"places": list(zip(places, patients, strict=True)), "lines": lines}


def robustness(rows: FocusRows, places: Places) -> dict[str, Any] | None:
    """Return how much each perturbation changes the metric, at each site."""
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


def seeds(rows: FocusRows, places: Places, models: Sequence[str], first: int) -> dict[str, Any] | None:
    """Return the metric of each seed's federated model at each site, and the least and the largest one.

    `first` is the seed of the study's own model.
    """
    names = {first: FEDERATED} | {int(name.partition(":")[2]): name for name in models if is_of_seed(name)}
    shown = [place for place in places if rows.valued(place, FEDERATED)]
    if len(names) < 2 or not shown:
        return None
    lines = [
        {"seed": seed, "cells": [rows.valued(place, name) for place in shown]}
        for seed, name in sorted(names.items())
    ]
    columns = zip(*(line["cells"] for line in lines), strict=True)
    known = [[row.value for row in column if row is not None] for column in columns]
    return {"places": shown, "lines": lines, "spread": [(min(some), max(some)) for some in known]}


def search(found: SearchFacts | None) -> dict[str, Any] | None:
    """Return the trials of the search in which the run's settings were chosen, the best first."""
    if found is None or found.chosen is None:
        return None
    sign = -1 if found.better == "higher" else 1
    trials = sorted(
        enumerate(found.trials),
        key=lambda one: (one[0] != found.chosen, one[1].score is None, sign * (one[1].score or 0.0), one[0]),
    )
    lines = [
        {
            "number": number + 1,
            "is_chosen": number == found.chosen,
            "settings": [text.partition("=")[2] for text in trial.overrides],
            "score": "–" if trial.score is None else f"{trial.score:.4g}",
            "rounds": trial.rounds,
            "end": _end(trial),
        }
        for number, trial in trials
    ]
    return {"said": found.sentences, "space": _space_of(found), "score": found.score, "lines": lines}


def _end(trial: TrialFacts) -> str:
    if trial.repeats is not None:
        return f"as trial {trial.repeats + 1}, not trained again"
    return trial.why or "trained to its end"


def _space_of(found: SearchFacts) -> list[tuple[str, str]]:
    """Return each searched key with what it was searched in, in the order of the trials' settings."""
    keys = [text.partition("=")[0] for text in found.trials[0].overrides]
    return [(key, found.space[key]) for key in keys]
