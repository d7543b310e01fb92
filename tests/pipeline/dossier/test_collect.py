"""What a dossier says of a run, by a run whose merges, weights and audits are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from pipeline.dossier_run import DIGEST, WEIGHTS, dossier_run

from medfed.errors import AuditError, RunError
from medfed.pipeline.dossier.checklist import evidence
from medfed.pipeline.dossier.collect import Sources, collect
from medfed.pipeline.dossier.records import Agreement, Dossier
from medfed.pipeline.dossier.write import page
from medfed.pipeline.leakage.findings import Findings, Inversion, Membership, to_json
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.facts import Mechanism, PrivacyFacts, SitePrivacy, package_versions
from medfed.runs.folder import RunFolder
from medfed.wire.audit_log import AuditLog


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return dossier_run(tmp_path_factory.mktemp("dossier") / "run")


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(made.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def of(run: RunFolder, **sources) -> Dossier:
    return collect(run, Sources(**sources), "2026-01-01", 7)


def test_who_trained_is_what_the_log_says(run: RunFolder) -> None:
    result = of(run)
    assert {one.site: one.rounds for one in result.provenance} == {
        "coast": [1, 2],
        "east": [1, 2, 3],
        "north": [1, 2, 3],
        "south": [1, 2, 3],
    }
    assert result.provenance[2].cases == 40
    assert (result.log.lines, result.log.signed, result.packages) == (4, 0, 7)
    assert result.provenance_note.startswith("Recomputed")


def test_the_weights_are_tied_to_their_merge_and_others_are_not(run: RunFolder) -> None:
    assert of(run).weights.round == 3
    changed = {name: tensor * 1.001 for name, tensor in WEIGHTS.items()}
    save_checkpoint(run.checkpoint("federated"), changed, 3)
    assert of(run).weights.round is None


def test_rounds_that_contradict_the_log_are_refused(run: RunFolder) -> None:
    text = run.rounds.read_text().replace(
        '"site": "coast", "status": "absent"', '"site": "coast", "status": "merged"'
    )
    run.rounds.write_text(text)
    with pytest.raises(AuditError, match="site 'coast': round 3 is merged in only one"):
        of(run)


def test_a_changed_log_is_refused(run: RunFolder) -> None:
    run.audit.write_text(run.audit.read_text().replace('"coast"', '"coost"', 1))
    with pytest.raises(AuditError, match="does not continue the line before it"):
        of(run)


def test_without_a_log_nobody_is_said_to_have_trained(run: RunFolder) -> None:
    run.audit.unlink()
    result = of(run)
    assert result.agreements_note.startswith("No approval of ")
    assert (result.provenance, result.never_merged, result.log, result.weights.round) == ([], [], None, None)
    assert "cannot be shown" in result.provenance_note


def test_a_hospitals_own_log_is_compared(run: RunFolder, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "north.jsonl")
    log.write("began", study=DIGEST, sites=["north"], resumed=False)
    log.write("agreed", study=DIGEST, by="a person")
    log.write("sent", site="north", round=1, bytes=10)
    with pytest.raises(
        AuditError, match="the hub merged an update of round 1 that this hospital's log did not"
    ):
        of(run, site_logs=[tmp_path / "north.jsonl"])


def test_the_epsilon_is_what_was_spent_or_why_there_is_none(run: RunFolder) -> None:
    assert of(run).privacy.no_epsilon.startswith("'none' is no differential privacy")
    facts = run.read_facts()
    spent = {"north": SitePrivacy(2.5, [Mechanism(1.0, 0.1, 3)])}
    privacy = PrivacyFacts("dp_sgd", ["a note"], 1e-5, "patient", "prv", spent)
    run.write_facts(msgspec.structs.replace(facts, privacy=privacy))
    result = of(run)
    assert [(one.site, one.epsilon) for one in result.privacy.spent] == [("north", 2.5)]
    assert (result.privacy.delta, result.privacy.no_epsilon) == (1e-5, "")
    # Of the others nothing is known, so no epsilon bounds what the weights tell of their patients.
    assert result.privacy.unknown == ["coast", "east", "south"]
    assert "not recorded, and it trained" in page(result, False)
    assert evidence(result)["statistical"].startswith("values over fewer")
    assert "epsilon" not in evidence(result)["statistical"]
    study = json.loads(run.public_study.read_text())
    run.public_study.write_text(json.dumps({**study, "privacy": {"kind": "dp_sgd", "delta": 1e-5}}))
    run.write_facts(msgspec.structs.replace(facts, privacy=PrivacyFacts("dp_sgd")))
    assert "in the hospitals' own ledgers" in of(run).privacy.no_epsilon


@pytest.mark.parametrize(("largest", "is_evidence"), [(7.25, True), (5000.0, False)])
def test_an_epsilon_is_evidence_if_it_bounds_something(run: RunFolder, largest: float, is_evidence: bool):
    mechanisms = [Mechanism(1.0, 0.1, 3)]
    spent = {site: SitePrivacy(largest, mechanisms) for site in ("coast", "east", "north", "south")}
    privacy = PrivacyFacts("dp_sgd", ["a note"], 1e-5, "patient", "prv", spent)
    run.write_facts(msgspec.structs.replace(run.read_facts(), privacy=privacy))
    found = of(run)
    assert found.privacy.unknown == []
    said = f"epsilon {largest:.2f} at delta 1e-05 for each patient, at every hospital that trained"
    assert evidence(found)["leakage_or_epsilon"] == (said if is_evidence else "")
    assert ("is no protection in practice" in page(found, False)) != is_evidence


def test_versions_that_were_not_recorded_are_not_said_to_be_the_same(run: RunFolder) -> None:
    facts = run.read_facts()
    run.write_facts(msgspec.structs.replace(facts, versions={}))
    assert of(run).differing is None
    assert "not known: the run recorded no versions" in page(of(run), False)
    run.write_facts(msgspec.structs.replace(facts, versions=package_versions()))
    assert of(run).differing == []
    assert "yes, by the versions that the run recorded" in page(of(run), False)


def leakage(run: RunFolder, digest: str) -> None:
    inverted = (Inversion("none", 1, 0.98765, 0.98765, 0.2),)
    members = (Membership("none", 4, 100, 0.71, 0.74), Membership("dp_sgd", 4, 3, 0.9, None))
    findings = Findings("lesions", "north", "segment", inverted, members, digest=digest)
    folder = run.site("north") / "leakage"
    folder.mkdir()
    (folder / "leakage.json").write_bytes(to_json(findings))


def test_leakage_is_in_whole_percent_without_attacks_on_too_few(run: RunFolder) -> None:
    leakage(run, DIGEST)
    result = of(run)
    assert [(one.recovered, one.chance, one.members, one.cases) for one in result.leakage] == [
        (99, 20, None, 1),
        (None, None, 74, 100),
    ]
    assert result.leakage_note == ""
    assert evidence(result)["leakage_or_epsilon"] == (
        "leakage audits at north: 99 % of a case recovered at worst (20 % by guessing), "
        "74 of 100 patients told rightly as members or not (section Leakage audit)"
    )


def test_leakage_of_another_study_is_not_shown(run: RunFolder) -> None:
    leakage(run, "cd" * 32)
    result = of(run)
    assert result.leakage == []
    assert result.leakage_note == "The audits at north are of another study than this one, and are not shown"
    (run.site("north") / "leakage" / "leakage.json").write_text("{")
    with pytest.raises(RunError, match=r"leakage audit of 'north': its leakage\.json is damaged"):
        of(run)


def test_approvals_are_by_digest_and_of_this_study(run: RunFolder) -> None:
    own = Agreement(site="north", study=DIGEST, approved="2026", policy="cc")
    assert of(run, agreements=[own]).agreements == [own]
    assert "No approval of coast, east, south is" in of(run, agreements=[own]).agreements_note
    gone = msgspec.structs.replace(own, revoked=True)
    assert "No approval of coast, east, north, south is" in of(run, agreements=[gone]).agreements_note
    with pytest.raises(RunError, match="hospital 'north' has no approval of this run's study"):
        of(run, agreements=[msgspec.structs.replace(own, study="other")])


def test_an_exports_files_are_listed(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "exported" / "models").mkdir(parents=True)
    with pytest.raises(RunError, match="holds no file"):
        of(run, exported=tmp_path / "exported")
    (tmp_path / "exported" / "models" / "model.ts").write_text("abc")
    (one,) = of(run, exported=tmp_path / "exported").weights.exported
    assert (one.name, one.bytes) == ("models/model.ts", 3)


def test_an_unfinished_run_and_a_run_without_a_model(run: RunFolder) -> None:
    run.write_facts(msgspec.structs.replace(run.read_facts(), finished=msgspec.UNSET))
    assert of(run).limits[0] == "The run has not come to its end."
    run.checkpoint("federated").unlink()
    with pytest.raises(RunError, match="has no federated model"):
        of(run)
