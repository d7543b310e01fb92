"""The ledger adds up per patient over studies, keeps what was spent, and refuses what is too much."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat

import numpy as np
import pytest

from medfed.errors import PrivacyError
from medfed.privacy.accounting.accountant import MechanismSteps, epsilon, renyi
from medfed.privacy.accounting.ledger import BudgetTracker, Ledger, data_set

SECRET = b"0123456789abcdef"
ALL = data_set(["anna", "bert", "cora"], SECRET)
STEP = MechanismSteps(4.0, 1.0, 4)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path)


def spend(ledger: Ledger, study: str, data=ALL, charge=STEP, close: bool = True) -> str:
    account = ledger.reserve(study, data, charge)
    ledger.commit(account, [charge], 1)
    if close:
        ledger.close(account)
    return account


def test_a_new_ledger_has_spent_nothing(tmp_path):
    assert Ledger(tmp_path).spent(ALL) == 0.0
    assert list(tmp_path.iterdir()) == []


def test_studies_compose_tightly_and_not_by_adding_epsilons(ledger, tmp_path):
    spend(ledger, "one")
    alone = ledger.spent(ALL)
    assert alone == pytest.approx(epsilon([STEP], 1e-5, "prv"))
    spend(ledger, "two")
    spend(ledger, "three", charge=MechanismSteps(2.0, 0.1, 7))
    together = epsilon([MechanismSteps(4.0, 1.0, 8), MechanismSteps(2.0, 0.1, 7)], 1e-5, "prv")
    assert Ledger(tmp_path).spent(ALL) == pytest.approx(together)
    assert together < 2 * alone + epsilon([MechanismSteps(2.0, 0.1, 7)], 1e-5, "prv")


def test_the_renyi_divergences_are_in_the_file(ledger, tmp_path):
    spend(ledger, "one")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["began", "data", "reserved", "spent", "closed"]
    np.testing.assert_allclose(lines[3]["renyi"], renyi([STEP], lines[0]["orders"]))


def test_nobody_starts_anew_because_a_patient_was_admitted_or_left(ledger):
    spend(ledger, "one")
    more = data_set(["anna", "bert", "cora", "dora"], SECRET)
    assert more.digest != ALL.digest
    assert ledger.spent(more) == ledger.spent(ALL) > 0
    assert ledger.spent(data_set(["anna"], SECRET)) == ledger.spent(ALL)
    assert ledger.spent(data_set(["dora"], SECRET)) == 0.0


def test_patients_of_unlike_studies_are_counted_by_their_own(ledger):
    spend(ledger, "one", data_set(["anna", "bert"], SECRET))
    spend(ledger, "two", data_set(["bert", "cora"], SECRET))
    alone, both = (epsilon([MechanismSteps(4.0, 1.0, steps)], 1e-5) for steps in (4, 8))
    assert ledger.spent(data_set(["anna"], SECRET)) == pytest.approx(alone)
    assert ledger.spent(data_set(["bert"], SECRET)) == pytest.approx(both)
    assert ledger.spent(ALL) == pytest.approx(both)


def test_no_patient_is_in_it_by_name_and_another_secret_gives_other_tokens(ledger, tmp_path):
    spend(ledger, "one")
    text = (tmp_path / "ledger.jsonl").read_text()
    assert not any(name in text for name in ("anna", "bert", "cora"))
    assert data_set(["anna"], b"another secret 16").patients.isdisjoint(ALL.patients)


def test_a_study_over_the_ceiling_is_refused_and_nothing_is_written(tmp_path):
    one = epsilon([STEP], 1e-5)
    ledger = Ledger(tmp_path, ceiling=1.2 * one)
    spend(ledger, "one")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(PrivacyError, match=rf"from epsilon {one:.3f} to .* the hospital's ceiling is"):
        ledger.reserve("two", ALL, STEP)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    ledger.reserve("two", data_set(["dora"], SECRET), STEP)


def test_what_another_study_has_reserved_counts_until_it_is_closed(tmp_path):
    ledger = Ledger(tmp_path, ceiling=1.2 * epsilon([STEP], 1e-5))
    account = ledger.reserve("one", ALL, STEP)
    assert ledger.spent(ALL) == 0.0
    with pytest.raises(PrivacyError, match="ceiling"):
        ledger.reserve("two", ALL, STEP)
    ledger.close(account)
    ledger.reserve("two", ALL, STEP)


def test_steps_that_are_spent_are_not_reserved_twice(tmp_path):
    four, five = (epsilon([MechanismSteps(4.0, 1.0, steps)], 1e-5) for steps in (4, 5))
    ledger = Ledger(tmp_path, ceiling=(four + five) / 2)
    account = ledger.reserve("one", ALL, STEP)
    ledger.commit(account, [MechanismSteps(4.0, 1.0, 3)], 1)
    # One of four is left: the same run may reserve it anew, and nobody anything more.
    ledger.reserve("one", ALL, MechanismSteps(4.0, 1.0, 1), account)
    with pytest.raises(PrivacyError, match="ceiling"):
        ledger.reserve("one", ALL, MechanismSteps(4.0, 1.0, 2), account)
    with pytest.raises(PrivacyError, match="ceiling"):
        ledger.reserve("two", ALL, MechanismSteps(4.0, 1.0, 1))


def test_it_is_its_owners_only(ledger, tmp_path):
    old = os.umask(0)
    try:
        spend(ledger, "one")
    finally:
        os.umask(old)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


@pytest.mark.parametrize("damage", ["changed", "removed", "moved"])
def test_a_line_that_was_touched_is_found(ledger, tmp_path, damage):
    spend(ledger, "one")
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "changed":
        lines[3] = lines[3].replace(b'"steps":4', b'"steps":1')
    elif damage == "removed":
        del lines[3]
    else:
        lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    with pytest.raises(PrivacyError, match=r"line [345]: does not continue the line before it"):
        Ledger(tmp_path)


def test_a_line_cut_by_a_power_loss_is_taken_away_and_the_ledger_goes_on(ledger, tmp_path):
    spend(ledger, "one")
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number":5,"event":"spe')
    again = Ledger(tmp_path)
    assert again.spent(ALL) == ledger.spent(ALL)
    spend(again, "two")
    assert path.read_bytes().startswith(whole)
    assert Ledger(tmp_path).spent(ALL) == pytest.approx(epsilon([MechanismSteps(4.0, 1.0, 8)], 1e-5))


def _many(folder: str) -> None:
    ledger = Ledger(folder)
    account = ledger.reserve("many", ALL, MechanismSteps(4.0, 1.0, 10))
    for number in range(10):
        ledger.commit(account, [MechanismSteps(4.0)], number)


def test_two_processes_may_write_at_once(tmp_path):
    several = multiprocessing.get_context("fork")
    workers = [several.Process(target=_many, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [account.spent for account in Ledger(tmp_path).accounts()] == [(MechanismSteps(4.0, 1.0, 10),)] * 2


def test_a_resumed_run_goes_on_with_its_account_and_a_new_one_opens_another(ledger):
    def run(resumed: bool) -> BudgetTracker:
        return BudgetTracker(ledger, "one", ALL, delta=1e-5, accountant="rdp", resumed=resumed)

    first = run(False)
    first.begin(MechanismSteps(4.0, 1.0, 4))
    first.add(MechanismSteps(4.0))
    # Nothing has left yet, so nothing is spent.
    assert first.settled == ()
    assert first.commit_round(1) == {"privacy/epsilon": epsilon([MechanismSteps(4.0)], 1e-5, "rdp")}
    first.add(MechanismSteps(4.0))  # the process dies before this is sent
    second = run(True)
    assert second.settled == (MechanismSteps(4.0),)
    second.begin(MechanismSteps(4.0, 1.0, 3))
    second.add(MechanismSteps(4.0, 1.0, 3))
    assert second.commit_round(2)["privacy/epsilon"] == epsilon([MechanismSteps(4.0, 1.0, 4)], 1e-5, "rdp")
    second.end()
    third = run(False)
    assert third.settled == ()
    assert len(ledger.accounts("one")) == 1
    third.begin(MechanismSteps(4.0, 1.0, 4))
    assert [account.closed for account in ledger.accounts("one")] == [True, False]


def test_nothing_is_spent_on_an_account_that_was_not_opened(ledger):
    with pytest.raises(PrivacyError, match="no account 'abc'; reserve first"):
        ledger.commit("abc", [STEP], 1)
