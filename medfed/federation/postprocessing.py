"""Which connected components of a segmentation are removed, chosen from all hospitals' validation patients.

Each hospital measures the last merged model on its validation patients, and sends for each structure and each
of `CANDIDATES` the mean gain in Dice over its patients, and how many they are: products of both add up over
hospitals, so the hub knows the gain over all patients and no single patient's. A hospital with fewer patients
than the smallest group sends nothing. The hub takes the candidate with the largest gain, and publishes the
choice with the final model.

Source: nnU-Net removes components only where that improves validation Dice (Isensee et al., Nat Methods 18,
2021, doi:10.1038/s41592-020-01008-z). Departure: components below a volume are candidates, too; a structure
that is rightly not predicted has a Dice of 1; and the gain is one mean over the patients of all hospitals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch

from medfed.errors import WireError
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# What may be removed of a structure: all but its largest component, or components below a volume in ml. They
# are the same in every study, so that sums over hospitals are of the same thing; the mildest comes first.
CANDIDATES: tuple[float | str, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, "largest")

# The first part of the names of what a hospital sends, and the number of its patients.
COMPONENTS = "val/components/"
PATIENTS = f"{COMPONENTS}patients"

# The mean gains that leave are rounded to this: a mean of many zeros and one gain would be that patient's.
GAIN_STEP = 0.001

# The least mean gain in Dice over all patients for which anything is removed: less is rounding.
LEAST_GAIN = 0.001

# A hospital counts as at most so many patients, so that one that states a million decides nothing alone.
MAX_PATIENTS = 1000

# The group of tensors that comes with the final model: the number of each structure's candidate, or -1.
CHOICE = "postprocess"
_NUMBERS = "candidates"

# What is removed, by structure: components below a volume in ml, or all but the `largest`.
Rules = dict[str, float | str]


def name_of(candidate: float | str, structure: str) -> str:
    """Return the name of the number that a hospital sends of one candidate and structure.

    >>> name_of(0.1, "liver")
    'val/components/0.1/liver'
    """
    return f"{COMPONENTS}{candidate}/{structure}"


def names_of(structures: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all numbers that a hospital may send for these structures."""
    return (PATIENTS, *(name_of(candidate, one) for candidate in CANDIDATES for one in structures))


def scalars_of(patients: int, gains: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return what a hospital sends: its number of patients, and each structure's mean gains, rounded.

    `gains` has for each structure that the hospital labels the mean gain of each of `CANDIDATES`.
    """
    if not patients:
        return {}
    sent = {
        name_of(candidate, structure): round(gain / GAIN_STEP) * GAIN_STEP
        for structure, means in gains.items()
        for candidate, gain in zip(CANDIDATES, means, strict=True)
    }
    return {PATIENTS: float(patients), **sent}


def pooled_gains(scalars: Mapping[str, Mapping[str, float]], structure: str) -> list[float]:
    """Return the mean gain of each of `CANDIDATES` over the patients of all hospitals, by what each sent.

    Numbers that no honest hospital sends are left out with their hospital: a gain outside -1 to 1, or one
    candidate alone.
    """
    total, patients = [0.0] * len(CANDIDATES), 0.0
    for _, sent in sorted(scalars.items()):
        n = min(sent.get(PATIENTS, 0.0), MAX_PATIENTS)
        gains = [sent.get(name_of(candidate, structure)) for candidate in CANDIDATES]
        usable = [gain for gain in gains if gain is not None and isfinite(gain) and -1 <= gain <= 1]
        if len(usable) == len(CANDIDATES) and n >= 1:
            total = [sum_ + gain * n for sum_, gain in zip(total, usable, strict=True)]
            patients += n
    return [sum_ / patients if patients else 0.0 for sum_ in total]


def choose_rules(
    scalars: Mapping[str, Mapping[str, float]], structures: Sequence[str]
) -> tuple[Rules, dict[str, float]]:
    """Return what is removed of each structure, and the gain in mean validation Dice, from what sites sent.

    The largest gain decides, and of equal ones the mildest candidate; without a gain nothing is removed.
    """
    rules: Rules = {}
    reached: dict[str, float] = {}
    for structure in structures:
        gains = pooled_gains(scalars, structure)
        best = max(range(len(gains)), key=lambda place: (round(gains[place], 9), -place))
        if gains[best] >= LEAST_GAIN - 1e-9:
            rules[structure], reached[structure] = CANDIDATES[best], gains[best]
    return rules, reached


def choice_group(rules: Rules, structures: Sequence[str]) -> Weights:
    """Return the choice as the group of tensors that travels with the final model."""
    numbers = [CANDIDATES.index(rules[one]) if one in rules else -1 for one in structures]
    return {_NUMBERS: torch.tensor(numbers, dtype=torch.float32)}


def rules_in(model: GlobalModel, structures: Sequence[str]) -> Rules:
    """Return the choice that came with a final model.

    Raises:
        WireError: if there is none, or it is no choice of these structures.
    """
    numbers = model.groups.get(CHOICE, {}).get(_NUMBERS)
    places = [] if numbers is None else numbers.reshape(-1).tolist()
    allowed = range(-1, len(CANDIDATES))
    if len(places) != len(structures) or any(place not in allowed for place in places):
        raise WireError(
            f"the final model came with {len(places)} choices of which components to remove, expected one of "
            f"{len(CANDIDATES)} candidates or none for each of {len(structures)} structures "
            "(task.postprocess); do hub and site run the same version of medfed?"
        )
    return {one: CANDIDATES[int(place)] for one, place in zip(structures, places, strict=True) if place >= 0}


def sentence_of(rules: Rules, gains: Mapping[str, float]) -> str:
    """Return the choice in words, for report, model card, log and audit log; a site knows no gains.

    >>> sentence_of({"liver": "largest", "lesion": 0.1}, {"liver": 0.0123, "lesion": 0.004})[:90]
    'Of liver only the largest component is kept (+0.0123 mean Dice on validation patients); co'
    """
    if not rules:
        return (
            "No connected components are removed: for no structure was a gain in the Dice of validation "
            "patients measured, pooled over the hospitals that have enough of them."
        )
    said = []
    for structure, rule in rules.items():
        gain = f" (+{gains[structure]:.4f} mean Dice on validation patients)" if structure in gains else ""
        kept = (
            f"of {structure} only the largest component is kept"
            if rule == "largest"
            else f"components of {structure} below {rule:g} ml are removed"
        )
        said.append(f"{kept}{gain}")
    text = "; ".join(said)
    return (
        f"{text[0].upper()}{text[1:]}; chosen on validation patients pooled over hospitals, no test patient "
        "took part."
    )
