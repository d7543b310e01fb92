"""The split of each patient, and the token that names a case in public.

Both come from HMAC-SHA256 with the site's secret: the same secret gives the same splits and tokens on every
machine and in every order of files. A new patient does not move an old one, unless the hospital is so small
that a split was empty. A plain hash would not protect the tokens: there are so few hospital numbers that
someone could try them all.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from medfed.data.case import Case
from medfed.errors import DataError

SPLITS = ("train", "val", "test")

DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)

# The fewest bytes of a site's secret: nobody can try so many.
MIN_SECRET_BYTES = 16

# The split of a case whose folder states none, until `assign_splits` chooses one.
UNASSIGNED = ""


def check_secret(site_secret: bytes) -> None:
    """Check that a site's secret is too long to be tried.

    Raises:
        DataError: if it is shorter.
    """
    if len(site_secret) < MIN_SECRET_BYTES:
        raise DataError(
            f"the site's secret has {len(site_secret)} bytes; at least {MIN_SECRET_BYTES} are needed, "
            "`secrets.token_bytes(32)` makes one"
        )


def case_token(site_secret: bytes, case: str) -> str:
    """Return the twelve hex digits that name a case in logs and errors."""
    return _mac(site_secret, "case", case).hex()[:12]


def _mac(site_secret: bytes, purpose: str, text: str) -> bytes:
    # The purpose separates what is printed (tokens) from what decides (splits).
    return hmac.new(site_secret, f"medfed/{purpose}/{text}".encode(), hashlib.sha256).digest()


def simulated_secret(seed: int, site: str) -> bytes:
    """Return the secret for a site's tokens and splits in a simulation, where one person has all folders.

    Args:
        seed: the study's seed.
        site: the hospital's name in the study.
    """
    return hashlib.sha256(f"medfed/simulated/{seed}/{site}".encode()).digest()


def split_position(site_secret: bytes, patient: str) -> float:
    """Return a patient's position in [0, 1), which decides the split."""
    return int.from_bytes(_mac(site_secret, "split", patient)[:8], "big") / 2**64


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Return the fractions of train, val and test.

    Raises:
        DataError: if they are not three shares of one.
    """
    shares = tuple(float(x) for x in fractions)
    if len(shares) != 3 or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise DataError(
            f"fractions are {list(shares)}; expected train, val, test of at least 0 that sum to 1, train "
            "above 0"
        )
    return shares[0], shares[1], shares[2]


def assign_splits(cases: Sequence[Case], site_secret: bytes, fractions: Sequence[float]) -> tuple[Case, ...]:
    """Return the cases, each with a split: the given one, or else the one at its patient's position.

    A patient with one given and one missing split keeps the given one for both. If chance leaves a split
    with a fraction above 0 empty, it gets the patient nearest to it from a split that has two: a hospital
    of five must validate on somebody.
    """
    shares = check_fractions(fractions)
    chosen = {case.patient: case.split for case in cases if case.split != UNASSIGNED}
    positions = {
        case.patient: split_position(site_secret, case.patient)
        for case in cases
        if case.patient not in chosen
    }
    edges = (shares[0], shares[0] + shares[1])
    for patient, position in positions.items():
        chosen[patient] = SPLITS[sum(position >= edge for edge in edges)]
    for split, share, centre in zip(SPLITS, shares, _centres(edges), strict=True):
        filled = Counter(chosen.values())
        spare = [patient for patient in positions if filled[chosen[patient]] > 1]
        if share > 0 and not filled[split] and spare:
            chosen[min((abs(positions[patient] - centre), patient) for patient in spare)[1]] = split
    if positions and "train" not in chosen.values():
        chosen[min((position, patient) for patient, position in positions.items())[1]] = "train"
    return tuple(
        replace(case, split=chosen[case.patient]) if case.split == UNASSIGNED else case for case in cases
    )


def _centres(edges: tuple[float, float]) -> tuple[float, float, float]:
    return edges[0] / 2, (edges[0] + edges[1]) / 2, (edges[1] + 1) / 2
