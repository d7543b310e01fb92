"""Splits follow from the secret and the patient alone."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.data.case import Case
from medfed.data.index import check_cases
from medfed.data.splits import (
    ASIDE,
    DEFAULT_FRACTIONS,
    LEAST_FROM,
    UNASSIGNED,
    Fold,
    assign_splits,
    case_token,
    check_fractions,
    split_position,
    split_quotas,
)
from medfed.errors import DataError

SECRET = b"a site's secret of some length"


def cases(count: int, visits: int = 1) -> list[Case]:
    return [
        Case(
            id=f"c{i}.{v}",
            patient=f"p{i}",
            token=case_token(SECRET, f"c{i}.{v}"),
            image=(Path("x"),),
            split=UNASSIGNED,
        )
        for i in range(count)
        for v in range(visits)
    ]


def split_of(found: tuple[Case, ...]) -> dict[str, str]:
    return {case.patient: case.split for case in found}


def test_a_patients_place_is_its_hmac() -> None:
    digest = hmac.new(SECRET, b"medfed/split/p1", hashlib.sha256).digest()
    assert split_position(SECRET, "p1") == int.from_bytes(digest[:8], "big") / 2**64


def test_a_token_is_an_hmac_and_no_plain_hash() -> None:
    assert case_token(SECRET, "c1") == hmac.new(SECRET, b"medfed/case/c1", hashlib.sha256).hexdigest()[:12]
    assert case_token(SECRET, "c1") != case_token(b"another site's secret", "c1")
    assert case_token(SECRET, "c1") not in hashlib.sha256(b"c1").hexdigest()


def test_all_visits_of_a_patient_are_in_one_split() -> None:
    assigned = assign_splits(cases(60, visits=3), SECRET, DEFAULT_FRACTIONS)
    for patient in {case.patient for case in assigned}:
        assert len({case.split for case in assigned if case.patient == patient}) == 1


def test_the_order_of_files_does_not_matter() -> None:
    listed = cases(30)
    assert split_of(assign_splits(listed, SECRET, DEFAULT_FRACTIONS)) == split_of(
        assign_splits(listed[::-1], SECRET, DEFAULT_FRACTIONS)
    )


@pytest.mark.parametrize("count", range(2, 80))
def test_a_new_patient_moves_at_most_one_across_each_edge(count: int) -> None:
    before = split_of(assign_splits(cases(count), SECRET, DEFAULT_FRACTIONS))
    after = split_of(assign_splits(cases(count + 1), SECRET, DEFAULT_FRACTIONS))
    moved = {patient for patient in before if after[patient] != before[patient]}
    # At 25 patients the least of 5 begins, for both splits at once.
    assert len(moved) <= (2 if count != LEAST_FROM - 1 else 5)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 0, 0)),
        (2, (1, 1, 0)),
        (3, (1, 1, 1)),
        (10, (7, 2, 1)),  # edges at 7 and 8.5
        (24, (17, 3, 4)),  # 16.8 and 20.4
        (25, (15, 5, 5)),  # 17.5 and 21.25, and the least of 5
        (36, (25, 6, 5)),  # 25.2 and 30.6
        (59, (41, 9, 9)),  # 41.3 and 50.15
        (400, (280, 60, 60)),
    ],
)
def test_quotas_by_hand(count: int, expected: tuple[int, int, int]) -> None:
    assert tuple(split_quotas(count, DEFAULT_FRACTIONS).values()) == expected
    result = Counter(split_of(assign_splits(cases(count), SECRET, DEFAULT_FRACTIONS)).values())
    assert tuple(result[split] for split in ("train", "val", "test")) == expected


def test_given_splits_count_towards_the_least() -> None:
    assert split_quotas(20, DEFAULT_FRACTIONS, {"test": 10}) == {"train": 12, "val": 5, "test": 3}
    assert split_quotas(1, DEFAULT_FRACTIONS, {"train": 1, "val": 1}) == {"train": 0, "val": 0, "test": 1}


def test_splits_are_pieces_of_the_order_of_positions() -> None:
    result = split_of(assign_splits(cases(60), SECRET, DEFAULT_FRACTIONS))
    ranked = sorted(result, key=lambda patient: split_position(SECRET, patient))
    assert [result[patient] for patient in ranked] == ["train"] * 42 + ["val"] * 9 + ["test"] * 9


def test_another_secret_splits_otherwise() -> None:
    one = split_of(assign_splits(cases(60), SECRET, DEFAULT_FRACTIONS))
    assert one != split_of(assign_splits(cases(60), b"another site's secret", DEFAULT_FRACTIONS))


@pytest.mark.parametrize("count", range(3, 12))
@pytest.mark.parametrize("secret", [b"%016d" % i for i in range(12)])
def test_a_small_hospital_has_a_patient_in_every_split(count: int, secret: bytes) -> None:
    assert set(split_of(assign_splits(cases(count), secret, DEFAULT_FRACTIONS)).values()) == {
        "train",
        "val",
        "test",
    }


@pytest.mark.parametrize("secret", [b"%016d" % i for i in range(12)])
def test_a_single_patient_trains(secret: bytes) -> None:
    assert split_of(assign_splits(cases(1), secret, DEFAULT_FRACTIONS)) == {"p0": "train"}


def test_a_split_without_a_share_stays_empty() -> None:
    assert set(split_of(assign_splits(cases(40), SECRET, (0.8, 0.2, 0.0))).values()) == {"train", "val"}


def test_given_splits_are_kept_and_shared_with_the_patients_other_visits() -> None:
    from dataclasses import replace

    listed = cases(20, visits=2)
    listed[0] = replace(listed[0], split="test")
    assigned = assign_splits(listed, SECRET, (1.0, 0.0, 0.0))
    assert split_of(assigned)["p0"] == "test"
    assert [case.split for case in assigned[:2]] == ["test", "test"]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (0, 0.5, 0.5)])
def test_fractions_that_are_no_shares_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="sum to 1"):
        check_fractions(fractions)


@pytest.mark.parametrize(("patients", "of"), [(10, 5), (23, 4), (30, 5), (7, 7)])
def test_over_all_folds_each_patient_is_tested_once(patients: int, of: int) -> None:
    tested: Counter[str] = Counter()
    validated: set[str] = set()
    for number in range(1, of + 1):
        split = split_of(
            assign_splits(cases(patients, visits=2), SECRET, DEFAULT_FRACTIONS, Fold(number=number, of=of))
        )
        sizes = Counter(split.values())
        assert sizes["test"] in (patients // of, -(-patients // of))
        assert sizes["train"] > 0
        assert sizes["val"] > 0
        tested.update(patient for patient, name in split.items() if name == "test")
        validated |= {patient for patient, name in split.items() if name == "val"}
    assert tested == dict.fromkeys((f"p{i}" for i in range(patients)), 1)
    assert len(validated) > sizes["val"]  # not the same patients in each fold


def test_a_fold_by_hand() -> None:
    """30 patients in 5 folds: fold 2 tests ranks 1, 6, 11, ...; of the others 0.7 / 0.85 of 24 train."""
    split = split_of(assign_splits(cases(30), SECRET, DEFAULT_FRACTIONS, Fold(number=2, of=5)))
    ranked = sorted(split, key=lambda patient: split_position(SECRET, patient))
    assert [patient for patient in ranked if split[patient] == "test"] == ranked[1::5]
    turned = [patient for patient in (*ranked[12:], *ranked[:12]) if split[patient] != "test"]
    # 0.7 / 0.85 of 24 are 19.76, rounded to 20.
    assert [split[patient] for patient in turned] == ["train"] * 20 + ["val"] * 4


def test_a_given_test_patient_is_in_no_fold_and_given_train_and_val_stay() -> None:
    listed = [replace(case, split=("test", "train", "val")[n % 3]) for n, case in enumerate(cases(30))]
    given = {case.patient: case.split for case in listed}
    for number in (1, 2, 3):
        split = split_of(assign_splits(tuple(listed), SECRET, DEFAULT_FRACTIONS, Fold(number=number, of=3)))
        for patient, name in split.items():
            assert name == {"test": ASIDE}.get(given[patient], name)
            assert name in (given[patient], "test", ASIDE)


def test_a_patient_in_two_given_splits_stays_so_that_the_folder_is_refused() -> None:
    listed = [replace(case, split=("train", "test")[n % 2]) for n, case in enumerate(cases(1, visits=2))]
    others = [replace(case, id=f"o{case.id}", patient=f"o{case.patient}") for case in cases(4)]
    assigned = assign_splits((*listed, *others), SECRET, DEFAULT_FRACTIONS, Fold(number=1, of=2))
    with pytest.raises(DataError, match="one patient is in two splits"):
        check_cases(assigned)


def test_fewer_patients_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"4 patients for 5 folds .* take fewer folds"):
        assign_splits(cases(4), SECRET, DEFAULT_FRACTIONS, Fold(number=1, of=5))
    with pytest.raises(DataError, match="number is 6 of 5 folds"):
        Fold(number=6, of=5)
