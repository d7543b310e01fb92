"""The split of each patient, and the token that names a case in public.

Both come from HMAC-SHA256 with the site's secret: the same secret gives the same splits and tokens on every
machine and in every order of files. A plain hash would not protect the tokens: there are so few hospital
numbers that someone could try them all.

**Quotas.** Patients are ranked by their position, and the splits are pieces of that order with exact shares:
the first train, the next validate, the last are tested. (Each position on its own side of a threshold gave
hospitals of 36 to 59 patients 3 to 8 test patients instead of 5 to 9, and half of them had no result.) From
`LEAST_FROM` patients on, a split with a share has at least `LEAST` patients.

**When patients arrive**, one new patient moves at most one old one across each of the two edges, if any. A
patient who trained and is in the test split since is recognised by the run's digests, and is not measured
(`runs/trained.py`). A column `split` in the hospital's table keeps everyone in place.

**Folds.** In fold k of K every K-th patient of the ranks is tested, beginning with the k-th, so that over all
folds each is tested once; the others train and validate. Who validates moves with the fold. A patient whose
given split is test trains in no fold and is tested in none: such patients are set aside.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from medfed.data.case import Case
from medfed.errors import DataError

SPLITS = ("train", "val", "test")

DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)

# The fewest bytes of a site's secret: nobody can try so many.
MIN_SECRET_BYTES = 16

# The split of a case whose folder states none, until `assign_splits` chooses one.
UNASSIGNED = ""

# The split, in a fold, of a patient whose given split is test: whoever trains or measures a fold sees none.
ASIDE = "aside"

# A split of fewer patients has no result that may be shown (`evaluation.smallest_group` is 5 if not set).
# From 25 patients on, both leave training three fifths.
LEAST, LEAST_FROM = 5, 25

# Shares such as 0.7 + 0.15 are not exact in binary; half a patient rounds up all the same.
ROUNDING = 1e-9


class Fold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fold of a cross-validation, by patient, at every hospital at once.

    number: which fold is tested, from 1; 0 is none, so that everyone trains but those whose given split is
    test, who are tested.  of: how many there are; each patient is tested in one of them.
    """

    number: Annotated[int, Meta(ge=0)]
    of: Annotated[int, Meta(ge=2, le=100)]

    def __post_init__(self) -> None:
        if self.number > self.of:
            raise DataError(f"fold: number is {self.number} of {self.of} folds; they are numbered from 1")


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
    # Names of files may hold bytes that are no UTF-8, which Python keeps as surrogates.
    named = f"medfed/{purpose}/{text}".encode("utf-8", "surrogateescape")
    return hmac.new(site_secret, named, hashlib.sha256).digest()


def simulated_secret(seed: int, site: str) -> bytes:
    """Return the secret for a site's tokens and splits in a simulation, where one person has all folders.

    Args:
        seed: the study's seed.
        site: the hospital's name in the study.
    """
    return hashlib.sha256(f"medfed/simulated/{seed}/{site}".encode()).digest()


def site_name(folder: Path) -> str:
    """Return the name that a folder or a table gives its hospital, '' if nothing of it can be one."""
    return re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.removesuffix(".csv").lower()).strip("-_")


def folder_secret(folder: Path, seed: int = 0) -> bytes:
    """Return the secret for tokens and splits where nobody gave one: that of a simulation with this folder.

    So a folder has the same splits and tokens each time, and those that training in one process uses. Like
    a simulation's, its tokens are for the eyes of whoever has the folder.
    """
    return simulated_secret(seed, site_name(folder))


def split_position(site_secret: bytes, patient: str) -> float:
    """Return a patient's position in [0, 1), by which patients are ranked for their split."""
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


def split_quotas(
    patients: int, fractions: Sequence[float], given: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """Return how many of a hospital's patients without a split each split gets.

    The two edges between the splits are at the shares' sums, rounded, so that one more patient moves each by
    at most one. Validation and test have at least `LEAST`, of fewer than `LEAST_FROM` patients at least one,
    and training has one before they do.

    Args:
        patients: those without a given split.
        fractions: see `check_fractions`.
        given: patients by split whose split is given; they count towards the least.
    """
    train, val, test = check_fractions(fractions)
    least = LEAST if patients + sum(given.values()) >= LEAST_FROM else 1
    first, second = (math.floor(share * patients + 0.5 + ROUNDING) for share in (train, train + val))
    if test > 0:
        second = min(second, patients - max(least - given.get("test", 0), 0))
    if val > 0:
        first = min(first, second - max(least - given.get("val", 0), 0))
    first = max(first, 0 if given.get("train") else min(1, patients))
    second = max(first, min(second, patients) if test > 0 else patients)
    if val > 0 and not given.get("val") and second == first and first < patients:
        second += 1  # of two patients one validates
    return {"train": first, "val": second - first, "test": patients - second}


def assign_splits(
    cases: Sequence[Case], site_secret: bytes, fractions: Sequence[float], fold: Fold | None = None
) -> tuple[Case, ...]:
    """Return the cases, each with a split: the given one, or else the one of its patient's rank.

    A patient with one given and one missing split keeps the given one for both. With a `fold`, it decides who
    is tested, and a patient whose given split is test is set aside.

    Raises:
        DataError: if there are fewer patients than folds.
    """
    chosen = {case.patient: case.split for case in cases if case.split != UNASSIGNED}
    everyone = {case.patient for case in cases}
    ranked = sorted(everyone, key=lambda patient: (split_position(site_secret, patient), patient))
    if fold is not None:
        splits = _fold_splits(ranked, chosen, fractions, fold)
        torn = _in_two_splits(cases)  # left as given, so that the folder is refused as without folds
        return tuple(
            case if case.patient in torn else replace(case, split=splits[case.patient]) for case in cases
        )
    chosen |= _by_rank([patient for patient in ranked if patient not in chosen], chosen, fractions)
    return tuple(
        replace(case, split=chosen[case.patient]) if case.split == UNASSIGNED else case for case in cases
    )


def _in_two_splits(cases: Sequence[Case]) -> set[str]:
    """Return the patients of whose cases two different splits are given."""
    given = {(case.patient, case.split) for case in cases if case.split != UNASSIGNED}
    return {patient for patient, count in Counter(patient for patient, _ in given).items() if count > 1}


def _by_rank(ranked: Sequence[str], given: Mapping[str, str], fractions: Sequence[float]) -> dict[str, str]:
    """Return the split of each patient without a given one, in the order of ranks."""
    quotas = split_quotas(len(ranked), fractions, Counter(given.values()))
    in_order = [split for split in SPLITS for _ in range(quotas[split])]
    return dict(zip(ranked, in_order, strict=True))


def _fold_splits(
    ranked: Sequence[str], given: Mapping[str, str], fractions: Sequence[float], fold: Fold
) -> dict[str, str]:
    """Return each patient's split in a fold; `ranked` are all patients, `given` their given splits."""
    aside = [patient for patient in ranked if given.get(patient) == "test"]
    dealt = [patient for patient in ranked if given.get(patient) != "test"]
    if len(dealt) < fold.of:
        raise DataError(
            f"data.fold: {len(dealt)} patients for {fold.of} folds (those whose given split is test are set "
            "aside); take fewer folds, so that each has a patient to test on"
        )
    if not fold.number:
        return {**dict.fromkeys(dealt, "train"), **dict.fromkeys(aside, "test")}
    tested = set(dealt[fold.number - 1 :: fold.of])
    known = {patient: given[patient] for patient in dealt if patient in given and patient not in tested}
    # Turned by the fold, so that those at the end of the order, who validate, are others in each fold.
    turn = fold.number * len(dealt) // fold.of
    others = [
        patient
        for patient in (*dealt[turn:], *dealt[:turn])
        if patient not in tested and patient not in known
    ]
    train, val, _ = check_fractions(fractions)
    known |= _by_rank(others, known, (train / (train + val), val / (train + val), 0.0))
    return {**known, **dict.fromkeys(tested, "test"), **dict.fromkeys(aside, ASIDE)}
