"""Statistics under noise: paid for once whatever dies, held to the ceiling, and said in the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from hospitals import make_hospital, write_study

from medfed.errors import LedgerError, PrivacyError, RunError, StudyError
from medfed.federation.description import description_digest
from medfed.pipeline import noised_statistics
from medfed.pipeline.describe import describe_study
from medfed.pipeline.describing import (
    answer_of,
    answer_to_send,
    describe_here,
    keep_statistics,
    kept_statistics,
    length_for,
    request_of,
)
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.noised_statistics import (
    ANSWER,
    Release,
    deviation_of,
    noise_of,
    simulated_releases,
    within_95,
)
from medfed.privacy.accounting.accountant import MechanismSteps, smallest_epsilon
from medfed.privacy.accounting.ledger import Ledger, data_set
from medfed.runs.folder import RunFolder
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import AuditLog

NOISE = "describe={noise: {epsilon: 1.0}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noised")
    for name in ("north", "south", "west"):
        make_hospital(folder / name)
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return read_study(folder / "tiny.yaml", [NOISE])


@pytest.fixture
def counts(study):
    """True counts of a hospital: 4 patients, and 100 in every other number."""
    vector = torch.full((length_for(study),), 100.0, dtype=torch.float64)
    vector[:3] = torch.tensor([1, 1, 4])
    return lambda: vector.clone()


def release_of(study, folder, patients=("a", "b"), ceiling=None):
    ledger = Ledger(folder / "ledger.jsonl", ceiling, secret=bytes(32))
    return Release(study_digest(study), data_set(patients, bytes(32)), ledger, folder)


def noised(study, counts, release):
    return noised_statistics.noised_answer(study, noise_of(study), counts, release)


def accounts(study, release):
    return release.ledger.accounts(description_digest(study_digest(study)))


def test_an_answer_is_drawn_and_paid_for_once(study, counts, tmp_path):
    first = noised(study, counts, release_of(study, tmp_path))
    assert first[:2].tolist() == [1, 1]
    assert torch.equal(first, first.round())
    assert not torch.equal(first, counts())
    again = noised(study, lambda: pytest.fail("counted again"), release_of(study, tmp_path))
    assert torch.equal(first, again)
    release = release_of(study, tmp_path)
    (account,) = accounts(study, release)
    assert (account.spent, account.closed) == ((noise_of(study).cost(),), True)
    # Within the study's epsilon, and no less than a hundredth below: the noise is no larger than need be.
    assert 0.99 < release.ledger.spent(release.patients) <= 1.0


@pytest.mark.parametrize("step", ["reserve", "write_whole", "commit", "close"])
@pytest.mark.parametrize("before", [True, False])
def test_a_hospital_that_dies_at_any_step_pays_once_for_what_it_sends(
    study, counts, tmp_path, monkeypatch, step, before
):
    where = noised_statistics if step == "write_whole" else Ledger
    real = getattr(where, step)

    def dies(*args, **kwargs):
        if not before:
            real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(where, step, dies)
        with pytest.raises(KeyboardInterrupt):
            noised(study, counts, release_of(study, tmp_path, ceiling=1.2))
    # Two reservations of epsilon 1 do not fit under the ceiling, what was lost unsent is released.
    sent = noised(study, counts, release_of(study, tmp_path, ceiling=1.2))
    release = release_of(study, tmp_path, ceiling=1.2)
    assert [one.spent for one in accounts(study, release) if one.spent] == [(noise_of(study).cost(),)]
    assert torch.equal(sent, noised(study, counts, release))


def test_an_answer_that_is_lost_or_of_other_patients_is_paid_for_again(study, counts, tmp_path):
    first = noised(study, counts, release_of(study, tmp_path))
    (tmp_path / ANSWER).unlink()
    assert not torch.equal(first, noised(study, counts, release_of(study, tmp_path)))
    release = release_of(study, tmp_path)
    twice = [MechanismSteps(noise_of(study).cost().noise_multiplier, 1.0, 2)]
    assert release.ledger.spent(release.patients) == pytest.approx(smallest_epsilon(twice, 1e-5))
    noised(study, counts, release_of(study, tmp_path, ("a", "c")))
    # 'c' paid once; 'a' is in both sets of patients.
    assert release.ledger.spent(data_set(("c",), bytes(32))) <= 1.0
    assert len([one for one in accounts(study, release) if one.spent]) == 3


def test_a_damaged_answer_says_what_to_do(study, counts, tmp_path):
    noised(study, counts, release_of(study, tmp_path))
    (tmp_path / ANSWER).write_text('{"account": 1')
    with pytest.raises(RunError, match=r"answer\.json: is damaged: .*charged to the patients' privacy"):
        noised(study, counts, release_of(study, tmp_path))


def test_the_ceiling_holds_over_training_and_statistics_together(study, counts, tmp_path):
    release = release_of(study, tmp_path, ceiling=1.9)
    trained = release.ledger.reserve("training", release.patients, MechanismSteps(2.4))
    release.ledger.commit(trained, [MechanismSteps(2.4)], 1)
    assert release.ledger.spent(release.patients) > 1.5
    with pytest.raises(LedgerError, match=r"would bring a patient .* from epsilon .*ceiling is 1\.9"):
        noised(study, counts, release)
    assert not (tmp_path / ANSWER).exists()
    assert accounts(study, release) == []


def test_nothing_is_sent_without_a_ledger(study, folder):
    data = hospital_of(study, "north", folder / "north").data
    with pytest.raises(PrivacyError, match="there is no ledger to charge; nothing was sent"):
        answer_to_send(study, data, 1, None)


def test_the_table_of_a_simulation_says_its_noise_and_each_hospital_paid(folder, tmp_path):
    run = describe_study(folder / "tiny.yaml", out=tmp_path / "run", overrides=[NOISE])
    described = read_study(run.study)
    half = within_95(deviation_of(described, noise_of(described)))
    text = run.table_one_csv.read_text()
    assert f"noise on each count,95 %,±{half * 2**0.5:.0f},±{half:.0f},±{half:.0f}" in text
    assert 'privacy spent by each patient,,"epsilon 1, delta 1e-05"' in text
    assert "left out under noise,," in text
    assert "cases (training),,-,-,-" in text
    page = run.table_one.read_text()
    assert "Noised counts below 0 are shown as 0" in page
    assert "exact to a bin" not in page
    for site in ("north", "south"):
        (account,) = Ledger(run.site(site)).accounts()
        assert account.spent == (noise_of(described).cost(),)
    kept = kept_statistics(run, described, study_digest(described))
    assert kept.total["hospitals"] == [2, 2]
    assert sorted(kept.hospitals) == ["north", "south"]


def test_a_secure_sum_adds_the_noise_of_all_hospitals(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(noised_statistics, "with_noise", lambda counts, deviation: counts - 1)
    quiet = "describe={privacy: {kind: secure_sum, min_sites: 2, colluding: 0}, noise: {epsilon: 1.0}}"
    study = read_study(folder / "tiny.yaml", [quiet])
    hospitals = {site: hospital_of(study, site, where) for site, where in study.sites.items()}
    data = {site: hospital.data for site, hospital in hospitals.items()}
    run = RunFolder(tmp_path)
    statistics = describe_here(
        study, data, AuditLog(None), releases=simulated_releases(study, hospitals, run)
    )
    assert statistics.hospitals == {}
    # Four patients each, F, M, F, M, and one less of each for noise.
    assert statistics.total["patients"] == [6]
    assert statistics.total["sex"] == [2, 2, -2, -2]
    keep_statistics(run, study, "digest", statistics)
    assert "patients (training),,6\n" in run.table_one_csv.read_text()


def test_the_counts_a_hospital_sends_differ_by_the_noise(study, folder, tmp_path):
    data = hospital_of(study, "north", folder / "north").data
    release = release_of(study, tmp_path)
    error = (answer_to_send(study, data, 1, release) - answer_of(study, data, 1))[2:].numpy()
    # Some 450 numbers give a deviation to 3.3 %; four of those are never reached.
    assert np.std(error) == pytest.approx(deviation_of(study, noise_of(study)), rel=0.2)


def test_noise_and_a_plan_do_not_go_together_and_a_study_without_noise_keeps_its_digest(folder):
    with pytest.raises(StudyError, match=r"data\.plan: is made of means, spreads and intensities"):
        read_study(folder / "tiny.yaml", [NOISE, "data.plan={min_patients: 2}"])
    plain = read_study(folder / "tiny.yaml", ["describe={}"])
    assert yaml.safe_load(public_yaml(plain))["describe"] == {"only": False, "privacy": None}
    with pytest.raises(StudyError, match=r"describe\.noise\.epsilon"):
        read_study(folder / "tiny.yaml", ["describe={noise: {epsilon: 0}}"])


def test_an_epsilon_without_usable_noise_is_refused_before_anybody_answers(folder):
    study = read_study(folder / "tiny.yaml", ["describe={noise: {epsilon: 0.0001}}"])
    with pytest.raises(PrivacyError, match="takes more noise than any hospital has patients"):
        request_of(study)
