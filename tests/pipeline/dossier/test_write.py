"""A dossier as it is written and verified, and that nothing in it is of a single patient."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from pipeline.dossier_run import dossier_run

from medfed.cli import main
from medfed.deployment.enrolment import enrol
from medfed.errors import RunError, StudyError
from medfed.evaluation.rows import read_cases
from medfed.pipeline.dossier.write import read_statements, write_dossier
from medfed.runs.folder import RunFolder
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import Identity

FILES = {
    "audit.jsonl", "curves.jsonl", "dossier.html", "dossier.json", "groups.jsonl", "manifest.json",
    "report.html", "rounds.jsonl", "rows.jsonl", "run.json", "sbom.cdx.json", "study.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return dossier_run(tmp_path_factory.mktemp("written") / "run")


def command(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_dossier_is_these_files_and_verifies(run: RunFolder, tmp_path: Path) -> None:
    said = command("export", run.path, "--dossier", "--out", tmp_path / "d")
    assert "its manifest is not signed" in said
    assert {path.name for path in (tmp_path / "d").iterdir()} == FILES
    said = command("audit", "verify", tmp_path / "d")
    assert "11 files, each as the manifest of" in said
    assert "NOT VERIFIED: it is whole and contradicts itself nowhere, and nobody signed it" in said
    assert "VERIFIED as" not in said
    assert "who trained, in dossier.json, is what its audit log says" in said
    assert "coast: merged in rounds 1 to 2" in said
    page = (tmp_path / "d" / "dossier.html").read_text()
    assert "these tensors are the merge of round 3, by digest" in page
    assert "Nobody signed this dossier" in page
    assert ">supports<" not in page
    assert str(run.path) not in page


def test_the_dossier_of_a_hospitals_own_folder_does_not_show_who_trained(tmp_path: Path) -> None:
    run = dossier_run(tmp_path / "own")
    run.write_facts(msgspec.structs.replace(run.read_facts(), own="coast"))
    run.audit.unlink()
    log = AuditLog(run.audit)
    log.write("began", study=run.read_facts().digest, sites=["coast"], resumed=False)
    for number in (1, 2):
        log.write("sent", site="coast", round=number, to="hub", bytes=90, tensors=1, examples=12)
    command("export", run.path, "--dossier", "--out", tmp_path / "d")
    said = command("audit", "verify", tmp_path / "d")
    assert "the dossier holds no log of merges: it does not show who trained" in said
    assert "who trained, in which rounds" not in said
    dossier = json.loads((tmp_path / "d" / "dossier.json").read_bytes())
    assert (dossier["provenance"], dossier["never_merged"]) == ([], [])
    assert "coast sent its updates of rounds 1 to 2" in dossier["card"]["Trained on"]


def test_a_signed_zip_verifies_against_its_federation(run: RunFolder, tmp_path: Path) -> None:
    enrol.init(tmp_path / "one", "test", ["127.0.0.1"])
    hub = Identity(tmp_path / "one" / "hub")
    signed = dossier_run(tmp_path / "signed", hub)
    command("export", signed.path, "--dossier", "--out", tmp_path / "d.zip", "--credentials", hub.folder)
    said = command("audit", "verify", tmp_path / "d.zip", "--credentials", hub.folder)
    assert "the manifest is signed by 'hub'" in said
    assert "VERIFIED as the dossier of 'hub'" in said
    assert "NOT VERIFIED: it is whole" in command("audit", "verify", tmp_path / "d.zip")
    assert said.count("issued in this federation") == 2
    enrol.init(tmp_path / "two", "test", ["127.0.0.1"])
    other = CliRunner().invoke(
        main, ["audit", "verify", str(tmp_path / "d.zip"), "--credentials", str(tmp_path / "two" / "hub")]
    )
    assert other.exit_code == 1
    assert "not from this federation's authority" in other.output


def test_no_file_of_a_dossier_holds_a_value_of_a_single_patient(run: RunFolder, tmp_path: Path) -> None:
    write_dossier(run, tmp_path / "d")
    cases = read_cases(run.cases)
    values = {abs(case.value) for case in cases if case.value is not None and case.value not in (0, 1)}
    known = np.sort(np.array([value for value in values if value != round(value)]))
    assert len(known) > 100
    for path in (tmp_path / "d").iterdir():
        text = path.read_bytes().decode("latin-1")
        assert not any(case.patient in text for case in cases), path.name
        for written in re.findall(r"\d\.\d{4,}(?:e-?\d+)?", text):
            place = np.searchsorted(known, float(written))
            near = known[max(place - 1, 0) : place + 1]
            assert not (np.abs(near - float(written)) < 1e-9).any(), f"{path.name} holds {written}"


def test_a_failed_dossier_leaves_nothing_and_none_is_overwritten(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "federated.ckpt").unlink()
    with pytest.raises(RunError, match="has no federated model"):
        write_dossier(tmp_path / "run", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    (tmp_path / "d.zip").write_text("")
    with pytest.raises(RunError, match="this file is there already"):
        write_dossier(run, tmp_path / "d.zip")
    with pytest.raises(RunError, match="not a run folder"):
        write_dossier(tmp_path, tmp_path / "d")


def test_statements_are_read_and_shown_as_text(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("intended_use: <b>Research</b>\nlicence: CC-BY-4.0\n")
    command("export", run.path, "--dossier", "--out", tmp_path / "d", "--statements", tmp_path / "s.yaml")
    page = (tmp_path / "d" / "dossier.html").read_text()
    assert "&lt;b&gt;Research" in page
    assert "<b>Research" not in page
    assert json.loads((tmp_path / "d" / "dossier.json").read_text())["statements"]["licence"] == "CC-BY-4.0"
    (tmp_path / "s.yaml").write_text("intended: Research\n")
    with pytest.raises(StudyError, match=r"s\.yaml:1: intended: no such key; did you mean 'intended_use'"):
        read_statements(tmp_path / "s.yaml")


@pytest.mark.parametrize("option", ["--statements", "--exported", "--credentials", "--site", "--site-log"])
def test_a_dossiers_options_need_the_dossier(run: RunFolder, tmp_path: Path, option: str) -> None:
    words = ["export", str(run.path), "--out", str(tmp_path / "d"), option, "x"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, "belong to --dossier" in result.output) == (1, True)


def test_a_dossier_is_of_the_federated_model(run: RunFolder, tmp_path: Path) -> None:
    words = ["export", str(run.path), "--out", str(tmp_path / "d"), "--dossier", "--model", "pooled"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, "omit --model" in result.output) == (1, True)
