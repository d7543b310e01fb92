"""What of a hospital's rows leaves it as scalars, and what the hub makes of the scalars of any site."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.errors import DataError
from medfed.evaluation import row_transport
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.row_checks import StudyMeasures
from medfed.evaluation.row_transport import accept_rows, scalars_of, without_rows
from medfed.evaluation.rows import Row

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import class_rows, image_row, survivors

ROW = Row(
    round=3, site="west", split="test", model="federated", metric="dice", value=0.81, low=0.7, high=0.9, n=16,
    structure="liver", group="sex=F",
)  # fmt: skip


def rows_of(scalars, round, site):
    rows, refused = accept_rows(scalars, round, site, 100, None)
    assert refused == []
    return rows


def like(**changes):
    return msgspec.structs.replace(ROW, **changes)


def test_the_hub_gets_value_interval_and_patients_but_no_note_method_or_test():
    scalars = scalars_of([like(note="of 16", method="bootstrap", p=0.5)])
    prefix = "row/test/federated/dice/liver/sex=F/"
    assert scalars == {f"{prefix}{name}": x for name, x in zip(
        ("value", "low", "high", "n"), (0.81, 0.7, 0.9, 16.0), strict=True
    )}  # fmt: skip
    assert rows_of(scalars, 3, "west") == [ROW]


@pytest.mark.parametrize(
    "change",
    [
        {"value": None, "note": "fewer than 5"},
        {"against": "pooled"},
        {"model": "local:west"},
        {"model": "pooled"},
        {"split": "train"},
        {"metric": "brier@365"},
    ],
    ids=str,
)
def test_what_stays_in_the_hospital(change):
    assert scalars_of([like(**change)]) == {}


def test_a_name_with_the_separator_keeps_its_place():
    row = like(structure="a/b%", group="site/x=ü")
    (name, *_) = scalars_of([row])
    assert name.count("/") == 6
    assert rows_of(scalars_of([row]), 3, "west") == [row]


def test_two_rows_of_one_name_are_refused():
    with pytest.raises(
        DataError, match="site 'west': two results have the same name 'row/test/federated/dice"
    ):
        scalars_of([ROW, like(round=4)])


DRAWN = np.random.default_rng(0).random((2, 30))
TABLE, SURVIVAL = (StudyMeasures(kind, needs, structures=frozenset()) for kind, needs in (
    ("tabular", "table"), ("survival", "survival")
))  # fmt: skip
HONEST = {
    "segmentation": (
        [
            image_row(str(i), float(DRAWN[k, i]) * (40.0 if k else 1.0), metric)
            for i in range(30)
            for k, metric in enumerate(("dice", "hd95_mm", "nsd_voxel_2mm"))
            for k in (k % 2,)
        ],
        ("lesion",),
        StudyMeasures("segment", "segment", structures=frozenset({"lesion"})),
    ),
    "classification": (
        [row for i in range(30) for row in class_rows(str(i), float(DRAWN[0, i]), i % 3 == 0)],
        ("healthy", "disease"),
        TABLE,
    ),
    "survival": (
        survivors("federated", DRAWN[0], 100 * DRAWN[1], [i % 2 == 0 for i in range(30)]),
        (),
        SURVIVAL,
    ),
}
FORM, KNOWN = "it has another form", "no metric of this name is known"
ALONE = "a site reports the federated and the untrained model"


@pytest.mark.parametrize(
    "name, why",
    [
        ("train/federated/dice//", ALONE),
        ("test/local:west/dice//", ALONE),
        ("test/pooled/dice//", ALONE),
        ("test/federated/<b>//", FORM),
        ("test/federated/%3Cb%3E//", KNOWN),
        (f"test/federated/{'x' * 61}//", KNOWN),
        ("test/federated/made_up//", KNOWN),
        ("test/federated/nsd_//", KNOWN),
        ("test/federated/nsd_@x//", KNOWN),
        ("test/federated/nsd_voxel//", KNOWN),
        ("test/federated/dice@3//", KNOWN),
        ("test/federated/brier@365//", "depends on a hospital's own data"),
        ("test/federated/integrated_brier//", "depends on a hospital's own data"),
        ("test/federated/dice/", FORM),
        ("test/federated/dice///", FORM),
        ("test/federated/%64ice//", FORM),
        ("test/federated/dice//female", "its group is not of the form attribute=value"),
        ("test/federated/dice//=F", "its group is not of the form"),
        ("test/federated/dice//sex=", "its group is not of the form"),
        (f"test/federated/dice//sex={'F' * 117}", "its group more than 120"),
        (f"test/federated/dice/{'a' * 81}/", "its structure has more than 80 characters"),
    ],
)
def test_a_row_that_no_site_may_report_is_refused_by_name(name, why):
    numbers = {f"row/{name}/value": 0.5, f"row/{name}/n": 16.0}
    rows, (refused,) = accept_rows({**numbers, **scalars_of([ROW])}, 3, "west", 100, None)
    assert rows == [ROW]
    assert refused.startswith(name[:120])
    assert why in refused


@pytest.mark.parametrize(
    "numbers, why",
    [
        ({"value": 7.5}, "7.5 is outside the metric's range"),
        ({"value": -0.1}, "-0.1 is outside the metric's range"),
        ({"value": float("nan")}, "a number that is not finite"),
        ({"n": float("inf")}, "a number that is not finite"),
        ({"value": None}, "it has no value"),
        ({"n": None}, "no whole number of patients"),
        ({"n": -3.0}, "it is of -3 patients, this site may have 1 to 100 in a split"),
        ({"n": 0.0}, "it is of 0 patients"),
        ({"n": 101.0}, "it is of 101 patients"),
        ({"n": 1e6}, "it is of 1000000 patients"),
        ({"n": 15.5}, "no whole number of patients"),
        ({"low": None}, "it has one end of an interval"),
        ({"low": 0.95}, "its interval runs from 0.95 to 0.9"),
        ({"high": 1.5}, "1.5 is outside the metric's range"),
        ({"p": 0.5}, FORM),
    ],
    ids=str,
)
def test_a_row_whose_numbers_contradict_themselves_is_refused(numbers, why):
    fields = {"value": 0.81, "low": 0.7, "high": 0.9, "n": 16.0, **numbers}
    scalars = {f"row/test/federated/dice///{name}": x for name, x in fields.items() if x is not None}
    rows, (refused,) = accept_rows(scalars, 3, "west", 100, None)
    assert rows == []
    assert refused.startswith("test/federated/dice//: ")
    assert why in refused


def test_the_number_of_patients_is_its_own_value():
    fields = {"row/test/federated/patients///value": 17.0, "row/test/federated/patients///n": 16.0}
    assert accept_rows(fields, 3, "west", 100, None) == (
        [],
        ["test/federated/patients//: it counts 17 patients among 16"],
    )


def test_a_refused_name_shows_every_character_and_many_are_counted():
    scalars = {f"row/test/federated/a\x1b{i:02d}//": 1.0 for i in range(15)}
    _, refused = accept_rows(scalars, 3, "west", 100, None)
    assert refused[0].startswith("test/federated/a\\x1b00")
    assert refused[10:] == ["and 5 more results"]


def test_a_site_reports_a_bounded_number_of_rows(monkeypatch):
    monkeypatch.setattr(row_transport, "MAX_ROWS", 2)
    scalars = scalars_of([like(structure=name) for name in "abc"])
    rows, refused = accept_rows(scalars, 3, "west", 100, None)
    assert [row.structure for row in rows] == ["a", "b"]
    assert refused == ["test/federated/dice/c/sex=F: more than 2 results of one site"]


@given(st.dictionaries(st.text(max_size=40).map("row/{}".format), st.floats() | st.integers()))
@settings(max_examples=200, deadline=None)
def test_whatever_a_site_sends_is_accepted_or_refused_and_ends_nothing(scalars):
    rows, refused = accept_rows(scalars, 3, "west", 100, None)
    assert rows == []
    assert bool(refused) == bool(scalars)
    assert all(line.isprintable() for line in refused)


@pytest.mark.parametrize("cases, classes, measures", HONEST.values(), ids=HONEST.keys())
def test_no_honest_row_is_refused(cases, classes, measures):
    summary = aggregate(cases, SummarySettings(round=3, seed=0, classes=classes, min_patients=2, draws=100))
    sent = scalars_of(row for row in summary if row.site == "north")
    rows, refused = accept_rows(sent, 3, "north", 40, measures)
    assert refused == []
    assert 4 * len(rows) >= len(sent) > 0


def test_a_row_is_of_the_site_that_the_connection_names_and_may_lack_its_interval():
    scalars = {"row/val/untrained/auroc///value": 0.5, "row/val/untrained/auroc///n": 9}
    (row,) = rows_of(scalars, 7, "north")
    assert row == Row(round=7, site="north", split="val", model="untrained", metric="auroc", value=0.5, n=9)


def test_scalars_of_a_round_are_separated_from_rows():
    assert without_rows({**scalars_of([ROW]), "train/loss": 1.0}) == {"train/loss": 1.0}
