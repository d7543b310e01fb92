"""The verdict on a folder in one sentence, and the facts about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medfed.data.findings import binary_columns
from medfed.data.planes import PIXELS
from medfed.data.preflight.case import CaseFacts
from medfed.data.preflight.issues import Problem
from medfed.data.preflight.listing import Listing
from medfed.data.volume import COLOUR

# The modality of images whose format states none.
UNKNOWN_MODALITY = "not stated (no DICOM)"


def verdict(problems: Sequence[Problem], cases: int, study: str | None, unusable: int = 0) -> str:
    """Return one sentence: whether the folder is ready, or whether it can take part in the study."""
    errors = [p for p in problems if p.severity == "error"]
    warnings = [p for p in problems if p.severity == "warning"]
    bad = {name for p in errors for name, _ in p.cases if name}
    where = f", in {len(bad)} of {cases} cases" if bad else ""
    if not cases:
        return "Nothing to train on: no case was found."
    if errors:
        kinds = f"{len(errors)} kind{'s' if len(errors) > 1 else ''} of error{where}"
        if study is not None:
            return f"This hospital can't take part in '{study}' yet: {kinds}."
        return f"Not ready: {kinds}."
    look = f" Look at {len(warnings)} warning{'s' if len(warnings) > 1 else ''} first." if warnings else ""
    left = f"{cases - unusable} of {cases} cases; {unusable} cannot be used and " if unusable else ""
    left += f"{'is' if unusable == 1 else 'are'} left out" if unusable else ""
    if study is not None:
        return f"This hospital can take part in '{study}' with {left or f'{cases} cases'}.{look}"
    return f"Ready: {left or f'{cases} cases, all of them can be read'}.{look}"


def summarise(listing: Listing, examined: Iterable[CaseFacts]) -> dict[str, Any]:
    """Return the facts about a folder as plain values."""
    good = [facts for facts in examined if facts.read]
    cases = listing.cases
    targets = Counter(case.target for case in cases if case.target is not None)
    return {
        "layout": listing.layout,
        "cases": len(cases),
        "left_out": dict(listing.left_out),
        "patients": len({case.patient for case in cases}),
        "training_patients": len({case.patient for case in cases if case.split == "train"}),
        "read": len(good),
        "splits": dict(sorted(Counter(case.split for case in cases).items())),
        "labels": sum(case.label is not None or bool(case.masks) for case in cases),
        "targets": {str(target): targets[target] for target in sorted(targets)},
        "findings": binary_columns(cases),
        "class_names": list(listing.class_names),
        "classes": _class_facts(good, listing.structures or listing.class_names),
        "modality": _counts(facts.modality or UNKNOWN_MODALITY for facts in good),
        "scanner": _counts(facts.scanner or "unknown" for facts in good),
        "orientation": _counts(facts.orientation for facts in good),
        "channel_names": list(listing.channels),
        "channels": _counts(str(facts.channels) for facts in good),
        "spacing_mm": _range([facts.spacing_mm for facts in good]),
        "in_pixels": sum(PIXELS in facts.flags for facts in good),
        "colours": sum(COLOUR in facts.flags for facts in good),
        "size": _range([facts.shape for facts in good]),
        "intensity": _range(
            [(f.quantiles[1], f.quantiles[50], f.quantiles[-2]) for f in good if f.quantiles]
        ),
    }


def _class_facts(good: Sequence[CaseFacts], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    voxels: Counter[int] = Counter()
    cases: Counter[int] = Counter()
    for facts in good:
        voxels.update(facts.classes)
        cases.update(facts.classes.keys())
    return {
        str(number): {
            "name": names[number] if number < len(names) else "",
            "cases": cases[number],
            "share": voxels[number] / voxels.total(),
        }
        for number in sorted(voxels)
    }


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _range(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    if not rows:
        return {}
    table = np.asarray(rows, np.float64)
    statistics = (
        ("least", table.min(axis=0)),
        ("median", np.median(table, axis=0)),
        ("most", table.max(axis=0)),
    )
    return {name: [round(float(value), 4) for value in values] for name, values in statistics}
