"""Statistics whose difference from earlier ones would be of a few patients are not sent."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from medfed.deployment.earlier_answers import FILE, check_earlier_answers, record_answer
from medfed.errors import DeclinedError, RunError


@pytest.fixture
def session(tmp_path):
    """Return a site's session with patients of these numbers."""

    def make(members, study="ab" * 32):
        data = SimpleNamespace(patients=lambda split: tuple(f"patient-{number}" for number in members))
        return SimpleNamespace(
            name="north",
            site=SimpleNamespace(out=str(tmp_path / "runs")),
            hospital=SimpleNamespace(data=data, secret=b"s" * 32),
            digest=study,
        )

    return make


@pytest.mark.parametrize(
    ("members", "came", "went"),
    [(range(5), 1, 0), (range(1, 4), 0, 1), (range(1, 5), 1, 1), (range(1, 9), 5, 1)],
)
def test_a_few_patients_who_came_or_went_are_refused(session, members, came, went):
    record_answer(session(range(4)), 2)
    with pytest.raises(
        DeclinedError,
        match=rf"site 'north': .* \(study abababababab\) but for {came} training patients who came and "
        rf"{went} who went since\. .* fewer than 2 patients may leave\. Nothing was sent",
    ):
        check_earlier_answers(session(members, "cd" * 32), 2)


def test_each_of_several_earlier_answers_counts(session, tmp_path):
    record_answer(session(range(4)), 2)
    record_answer(session(range(9)), 2)
    for members in (range(5), range(8)):
        with pytest.raises(DeclinedError, match="but for"):
            record_answer(session(members), 2)
    assert len((tmp_path / "runs" / FILE).read_text().splitlines()) == 2


@pytest.mark.parametrize("members", [range(3, 9), range(6), range(2, 4), range(10, 14)])
def test_enough_patients_who_came_or_went_are_no_few(session, members):
    record_answer(session(range(4)), 2)
    record_answer(session(members), 2)


def test_several_answers_that_give_one_patient_together_are_refused(session):
    """Each pair differs by five patients and more; 0..5 plus 5..10 minus 0..10 is patient 5 alone."""
    everyone = range(40)
    record_answer(session(everyone), 5)
    record_answer(session(set(everyone) - {0, 1, 2, 3, 4, 5}), 5)
    record_answer(session(set(everyone) - {5, 6, 7, 8, 9, 10}), 5)
    with pytest.raises(
        DeclinedError,
        match=r"site 'north': its statistics, together with the 3 answers that it sent before, would give "
        r"those of fewer than 5 patients.* Nothing was sent",
    ):
        record_answer(session(set(everyone) - set(range(11))), 5)
    record_answer(session(everyone), 5)
    record_answer(session(range(6, 40)), 5)


def test_the_same_patients_answer_in_each_study_and_are_kept_once(session, tmp_path):
    record_answer(session(range(4)), 2)
    record_answer(session(range(4), "cd" * 32), 2)
    kept = tmp_path / "runs" / FILE
    (line,) = kept.read_text().splitlines()
    assert json.loads(line)["study"] == "ab" * 32
    assert len({*json.loads(line)["patients"]}) == 4
    assert "patient-" not in line
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_look_keeps_nothing(session):
    check_earlier_answers(session(range(4)), 2)
    record_answer(session(range(5)), 2)


def test_fewer_patients_than_may_be_told_are_not_compared(session):
    """They say only that they are too few."""
    record_answer(session(range(1)), 2)
    record_answer(session(range(2)), 2)


def test_a_damaged_record_is_told(session, tmp_path):
    record_answer(session(range(4)), 2)
    (tmp_path / "runs" / FILE).write_bytes(b'{"time": "2026')
    with pytest.raises(RunError, match=r"statistics\.jsonl, line 1: of which patients .* is damaged"):
        check_earlier_answers(session(range(4)), 2)
