"""Which patients train, validate and test, and what a case is called in public.

Both come from HMAC-SHA256 with the site's secret: the same secret gives the same splits and tokens on every
machine, in every order of files, and a new patient does not move an old one (but out of a hospital so small
that a split was empty). A plain hash would not do for tokens: hospital numbers are few enough to try them
all.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from medfed.errors import DataError

if TYPE_CHECKING:
    from medfed.data.index import Case

SPLITS = ("train", "val", "test")

DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)

# A case whose layout gives no split carries this until `assign_splits` has chosen one.
UNASSIGNED = ""


def case_token(site_secret: bytes, case: str) -> str:
    """Return the twelve hex digits that logs and errors call a case."""
    return _mac(site_secret, "case", case).hex()[:12]


def _mac(site_secret: bytes, purpose: str, text: str) -> bytes:
    # The purpose keeps apart what is printed (tokens) and what decides (splits).
    return hmac.new(site_secret, f"medfed/{purpose}/{text}".encode(), hashlib.sha256).digest()


def split_position(site_secret: bytes, patient: str) -> float:
    """Return a patient's place in [0, 1), which decides the split."""
    return int.from_bytes(_mac(site_secret, "split", patient)[:8], "big") / 2**64


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Return the fractions of train, val and test, or raise where they are not three shares of one.

    Raises:
        DataError: saying what they are.
    """
    shares = tuple(float(x) for x in fractions)
    if len(shares) != 3 or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise DataError(
            f"fractions are {list(shares)}; expected train, val, test of at least 0 that sum to 1, train "
            "above 0"
        )
    return shares[0], shares[1], shares[2]


def assign_splits(cases: Sequence[Case], site_secret: bytes, fractions: Sequence[float]) -> tuple[Case, ...]:
    """Return the cases with a split each: the given ones kept, the others by their patient's place.

    A patient with one given and one missing split keeps the given one for both. Where chance leaves a split
    with a fraction empty, it gets the patient nearest to it from a split that has two: a hospital of five
    must validate on somebody.
    """
    shares = check_fractions(fractions)
    chosen = {case.patient: case.split for case in cases if case.split != UNASSIGNED}
    places = {
        case.patient: split_position(site_secret, case.patient)
        for case in cases
        if case.patient not in chosen
    }
    edges = (shares[0], shares[0] + shares[1])
    for patient, place in places.items():
        chosen[patient] = SPLITS[sum(place >= edge for edge in edges)]
    for split, share, centre in zip(SPLITS, shares, _centres(edges), strict=True):
        filled = Counter(chosen.values())
        spare = [patient for patient in places if filled[chosen[patient]] > 1]
        if share > 0 and not filled[split] and spare:
            chosen[min((abs(places[patient] - centre), patient) for patient in spare)[1]] = split
    if places and "train" not in chosen.values():
        chosen[min((place, patient) for patient, place in places.items())[1]] = "train"
    return tuple(
        replace(case, split=chosen[case.patient]) if case.split == UNASSIGNED else case for case in cases
    )


def _centres(edges: tuple[float, float]) -> tuple[float, float, float]:
    return edges[0] / 2, (edges[0] + edges[1]) / 2, (edges[1] + 1) / 2
