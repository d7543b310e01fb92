"""A hospital's policy and page under `describe.noise`."""

from __future__ import annotations

import pytest
from hospitals import make_hospital, write_study

from medfed.deployment import description
from medfed.deployment.policy import Policy, refusals
from medfed.deployment.site_file import SiteFile
from medfed.deployment.site_session import SiteSession, ledger_of
from medfed.deployment.study_page import OwnPart, describe
from medfed.errors import LedgerError
from medfed.exchange.folder import Folder
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.noised_statistics import deviation_of, noise_of, within_95
from medfed.privacy.accounting.ledger import data_set
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import AuditLog


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noised")
    for name in ("north", "south", "west"):
        make_hospital(folder / name)
    write_study(folder)
    return folder


def test_a_policy_holds_the_epsilon_of_statistics_and_of_both_together(folder):
    study = read_study(folder / "tiny.yaml", ["describe={only: true, noise: {epsilon: 2.0}}"])
    assert refusals(Policy(epsilon_ceiling=2), study, 4) == []
    assert refusals(Policy(epsilon_ceiling=1.5), study, 4) == [
        "the epsilon of the study's statistics is 2 (describe.noise), this hospital allows at most 1.5 "
        "(policy.epsilon_ceiling)"
    ]
    assert (
        "at a delta of 1e-05 (describe.noise)" in refusals(Policy(epsilon_ceiling=2, delta=1e-6), study, 4)[0]
    )
    both = read_study(
        folder / "tiny.yaml",
        [
            "describe={noise: {epsilon: 2.0}, privacy: {kind: none}}",
            "privacy={kind: client_dp, where: site, epsilon: 6}",
        ],
    )
    assert refusals(Policy(epsilon_ceiling=8), both, 4) == []
    assert refusals(Policy(epsilon_ceiling=7), both, 4) == [
        "the study's epsilon is 6 and that of its statistics 2 (describe.noise), together 8, this hospital "
        "allows at most 7 (policy.epsilon_ceiling)"
    ]
    # Noise for each patient is what dp_sgd gives; a hospital that asks for client_dp asks for more.
    assert refusals(Policy(privacy=("dp_sgd", "client_dp")), both, 4) == []
    assert "under 'none' (describe.privacy)" in refusals(Policy(privacy=("client_dp",)), both, 4)[0]


def test_too_little_noise_to_hide_a_small_group_is_refused(folder):
    study = read_study(folder / "tiny.yaml", ["describe={only: true, noise: {epsilon: 50}}"])
    said = refusals(Policy(), study, 4)
    assert len(said) == 1
    assert "too little to hide groups of fewer than 10 (policy.smallest_group)" in said[0]
    assert refusals(Policy(smallest_group=1), study, 4) == []


def test_the_page_says_the_noise_and_what_it_costs(folder):
    study = read_study(folder / "tiny.yaml", ["describe={noise: {epsilon: 1.0}}"])
    page = describe(OwnPart(study, SiteFile(name="north", data="", exchange=Folder(url="x"))), "digest")
    half = within_95(deviation_of(study, noise_of(study)))
    assert f"adds noise of ±{half:.3g} (95 %) before it leaves" in page
    assert "it spends epsilon 1 at delta 1e-05 of each patient's privacy, once," in page
    assert "none is withheld for being small, as the noise hides small ones" in page
    assert "none of fewer than" not in page
    only = read_study(folder / "tiny.yaml", ["describe={only: true, noise: {epsilon: 1.0}}"])
    page = describe(OwnPart(only, SiteFile(name="north", data="", exchange=Folder(url="x"))), "digest")
    assert (
        "Protection         this hospital's own noise on every count (describe.noise), sent under 'none'"
        in page
    )
    assert "No protection" not in page


def session_of(study, folder, tmp_path, **policy):
    secret = tmp_path / "kept" / "secret"
    secret.parent.mkdir(exist_ok=True)
    site = SiteFile(
        name="north",
        data=str(folder / "north"),
        exchange=Folder(url="x"),
        policy=Policy(**policy),
        out=str(tmp_path),
        secret=str(secret),
    )
    hospital = hospital_of(study, "north", folder / "north")
    return SiteSession(site, study, hospital, RunFolder(tmp_path / "run"), None, None, AuditLog(None))


def test_a_hospitals_own_ledger_pays_once_for_what_every_start_sends(folder, tmp_path):
    study = read_study(folder / "tiny.yaml", ["describe={noise: {epsilon: 1.0}}"])
    first = description._answer(session_of(study, folder, tmp_path))
    again = session_of(study, folder, tmp_path)
    assert description._answer(again).tolist() == first.tolist()
    ledger = ledger_of(again.site, again.hospital.secret)
    patients = data_set(again.hospital.data.patients("train"), again.hospital.secret)
    assert 0.99 < ledger.spent(patients) <= 1.0
    # The account is not the training's, which would take it for its own.
    assert ledger.accounts(study_digest(study)) == []
    other = read_study(folder / "tiny.yaml", ["describe={noise: {epsilon: 1.0}}", "name=other"])
    refused = session_of(other, folder, tmp_path, epsilon_ceiling=1.2)
    with pytest.raises(LedgerError, match=r"to 1\.\d+ at delta 1e-05, the hospital's ceiling is 1\.2"):
        description._answer(refused)
