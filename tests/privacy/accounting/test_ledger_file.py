"""A ledger that was edited, cut, deleted or written by someone else is refused; a person may take it over."""

from __future__ import annotations

import json
import shutil

import pytest

from medfed.errors import PrivacyError
from medfed.privacy.accounting.accountant import MechanismSteps, epsilon
from medfed.privacy.accounting.ledger import Ledger, data_set

SECRET, STRANGER = b"0123456789abcdef", b"fedcba9876543210"
ALL = data_set(["anna", "bert"], SECRET)
STEP = MechanismSteps(4.0, 1.0, 4)


@pytest.fixture
def places(tmp_path):
    """Return the ledger and, in another folder, its head, after one study of four lines."""
    path, head = tmp_path / "runs" / "ledger.jsonl", tmp_path / "own" / "secret.ledger"
    ledger = Ledger(path, secret=SECRET, head=head)
    account = ledger.reserve("one", ALL, STEP)
    ledger.commit(account, [STEP], 1)
    assert [line["event"] for line in lines(path)] == ["began", "data", "reserved", "spent"]
    assert ledger.head().lines == 4
    return path, head


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def cut(path, number):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:number]))


def test_it_goes_on_where_nothing_was_touched(places):
    path, head = places
    ledger = Ledger(path, secret=SECRET, head=head)
    assert ledger.spent(ALL) == pytest.approx(epsilon([STEP], 1e-5))
    ledger.reserve("two", ALL, STEP)
    assert Ledger(path, secret=SECRET, head=head).head().lines == 5


@pytest.mark.parametrize(
    "left, message",
    [
        (3, "its last 1 lines are missing; the head that is kept elsewhere counts 4"),
        (1, "its last 3 lines are missing"),
        (0, "the whole file is missing; the head that is kept elsewhere counts 4"),
        (None, "the whole file is missing"),
    ],
)
def test_a_cut_tail_and_a_missing_file_are_refused(places, left, message):
    path, head = places
    path.unlink() if left is None else cut(path, left)
    with pytest.raises(PrivacyError, match=message):
        Ledger(path, secret=SECRET, head=head)


def test_a_missing_head_is_refused(places):
    path, head = places
    head.unlink()
    with pytest.raises(PrivacyError, match=r"its head is missing \(4 lines are there\)"):
        Ledger(path, secret=SECRET, head=head)


def test_a_ledger_that_starts_anew_is_not_the_one_of_the_head(places, tmp_path):
    path, head = places
    path.unlink()
    other = Ledger(path, secret=SECRET, head=tmp_path / "another")
    for study in ("one", "two", "three"):
        other.reserve(study, ALL, MechanismSteps(99.0, 1.0, 1))
    with pytest.raises(PrivacyError, match="line 4: is another one than the head"):
        Ledger(path, secret=SECRET, head=head)


def test_lines_are_only_the_hospitals_own(places, tmp_path):
    path, head = places
    for place in (path, head):
        place.unlink()
    Ledger(path, secret=STRANGER, head=head).reserve("one", ALL, STEP)
    with pytest.raises(PrivacyError, match="the head: its signature is not this hospital's"):
        Ledger(path, secret=SECRET, head=head)
    head.unlink()
    with pytest.raises(PrivacyError, match="line 1: its signature is not this hospital's"):
        Ledger(path, secret=SECRET, head=head)


def test_a_line_without_signature_is_refused_and_none_is_added_to_signed_ones(places):
    path, head = places
    shutil.copy(head, path.with_suffix(".head"))
    with pytest.raises(PrivacyError, match="signed with the hospital's secret, which is not given here"):
        Ledger(path).reserve("two", ALL, STEP)
    path.unlink()
    head.unlink()
    Ledger(path, head=head).reserve("one", ALL, STEP)
    with pytest.raises(PrivacyError, match="line 1: is not signed with this hospital's secret"):
        Ledger(path, secret=SECRET, head=path.parent / "none")


def test_a_power_cut_between_line_and_head_costs_nothing(places):
    path, head = places
    before = head.read_bytes()
    Ledger(path, secret=SECRET, head=head).reserve("two", ALL, STEP)
    head.write_bytes(before)
    ledger = Ledger(path, secret=SECRET, head=head)
    assert [account.study for account in ledger.accounts()] == ["one", "two"]
    ledger.reserve("three", ALL, STEP)
    assert ledger.head().lines == 6


def test_a_person_takes_over_an_earlier_medfeds_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).reserve("one", ALL, STEP)
    path.with_suffix(".head").unlink()
    with pytest.raises(PrivacyError, match="line 1: is not signed"):
        Ledger(path, secret=SECRET)
    assert Ledger.adopt(path, secret=SECRET) == 3
    ledger = Ledger(path, secret=SECRET)
    assert [account.study for account in ledger.accounts()] == ["one"]
    assert lines(path)[-1]["event"] == "adopted"
    # What is taken over is chained: it cannot be edited afterwards.
    path.write_bytes(path.read_bytes().replace(b'"steps":4', b'"steps":1'))
    with pytest.raises(PrivacyError, match="does not continue the line before it"):
        Ledger(path, secret=SECRET)


def test_an_edited_ledger_cannot_be_taken_over(places):
    path, head = places
    path.write_bytes(path.read_bytes().replace(b'"steps":4', b'"steps":1'))
    with pytest.raises(PrivacyError, match=r"does not continue|its signature"):
        Ledger.adopt(path, secret=SECRET, head=head)
