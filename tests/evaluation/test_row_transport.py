"""What of a hospital's rows leaves it as scalars, and what the hub makes of the scalars of any site."""

from __future__ import annotations

import msgspec
import pytest

from medfed.errors import DataError
from medfed.evaluation.row_transport import rows_of, scalars_of, without_rows
from medfed.evaluation.rows import Row

ROW = Row(
    round=3, site="west", split="test", model="federated", metric="dice", value=0.81, low=0.7, high=0.9, n=16,
    structure="liver", group="sex=F",
)  # fmt: skip


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


@pytest.mark.parametrize(
    "name",
    [
        "row/train/federated/dice///value",
        "row/test/local:west/dice///value",
        "row/test/federated/dice///low",
        "row/test/federated/dice//value",
        "row/test/federated/dice///p",
        "row/test/federated/<b>///value",
        f"row/test/federated/{'x' * 61}///value",
        "test/federated/dice///value",
    ],
)
def test_the_hub_drops_what_no_site_may_report(name):
    assert rows_of({name: 0.5}, 3, "west") == []


def test_a_row_is_of_the_site_that_the_connection_names_and_may_lack_its_interval():
    (row,) = rows_of({"row/val/untrained/auroc///value": 0.5}, 7, "north")
    assert row == Row(
        round=7, site="north", split="val", model="untrained", metric="auroc", value=0.5, n=None
    )


def test_scalars_of_a_round_are_separated_from_rows():
    assert without_rows({**scalars_of([ROW]), "train/loss": 1.0}) == {"train/loss": 1.0}
