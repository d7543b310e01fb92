"""A dossier whose files are whole and whose claims are not what its own records show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from pipeline.dossier_run import dossier_run

from medfed.errors import AuditError
from medfed.pipeline.dossier.manifest import verify_dossier, write_manifest
from medfed.pipeline.dossier.records import Contribution, Dossier
from medfed.pipeline.dossier.verify import check_claims, check_derived, page_made_by, standing
from medfed.pipeline.dossier.write import page, write_dossier
from medfed.runs.folder import RunFolder

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    return write_dossier(dossier_run(folder / "run"), folder / "d")


def forged(whole: Path, folder: Path, change: Callable[[Dossier], Dossier], without: str = "") -> Path:
    """Copy a dossier with a changed dossier.json and a manifest that fits it."""
    shutil.copytree(whole, folder)
    path = folder / "dossier.json"
    dossier = msgspec.json.decode(path.read_bytes(), type=Dossier)
    path.write_bytes(msgspec.json.encode(change(dossier)))
    for name in ("manifest.json", without):
        if name:
            (folder / name).unlink()
    sha256 = dossier.weights.file.sha256
    write_manifest(folder, study=dossier.digest, weights_sha256=sha256, made="2026", identity=None)
    return folder


def _more_rounds(dossier: Dossier) -> Dossier:
    first = dossier.provenance[0]
    return replace(dossier, provenance=[Contribution(first.site, [1, 2, 3]), *dossier.provenance[1:]])


def test_true_claims_pass(whole: Path) -> None:
    assert check_claims(whole, verify_dossier(whole).manifest)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_more_rounds, "differ in the rounds in which 'coast' was merged"),
        (lambda one: replace(one, provenance=[]), "differ in the rounds in which 'coast' was merged"),
        (lambda one: replace(one, weights=replace(one.weights, round=2)), "audit log has another digest"),
        (lambda one: replace(one, digest="other"), "is of another study"),
    ],
)  # fmt: skip
def test_a_false_claim_is_found(whole: Path, tmp_path: Path, change, match: str) -> None:
    folder = forged(whole, tmp_path / "d", change)
    with pytest.raises(AuditError, match=match):
        check_claims(folder, verify_dossier(folder).manifest)


def _other_study(dossier: Dossier) -> Dossier:
    return replace(dossier, digest="cd" * 32)


def test_a_study_that_the_log_did_not_begin_is_found(whole: Path, tmp_path: Path) -> None:
    folder = forged(whole, tmp_path / "d", _other_study)
    (folder / "manifest.json").unlink()
    sha256 = msgspec.json.decode((folder / "dossier.json").read_bytes(), type=Dossier).weights.file.sha256
    write_manifest(folder, study="cd" * 32, weights_sha256=sha256, made="2026", identity=None)
    with pytest.raises(AuditError, match="of another study than the one that the audit log began"):
        check_claims(folder, verify_dossier(folder).manifest)


def test_a_page_that_says_something_else_than_its_record_is_found(whole: Path, tmp_path: Path) -> None:
    assert page_made_by(whole, page) == ""
    folder = forged(whole, tmp_path / "d", lambda one: one)
    path = folder / "dossier.html"
    path.write_text(path.read_text().replace("<b>No epsilon.</b>", "<b>Epsilon 0.1.</b>"))
    with pytest.raises(AuditError, match=r"dossier\.html is not the page of dossier\.json"):
        page_made_by(folder, page)
    bill = folder / "sbom.cdx.json"
    bill.write_text(bill.read_text().replace(f'"version": "{version("medfed")}"', '"version": "9.9"', 1))
    assert page_made_by(folder, page) == "9.9"
    bill.write_text("{}")
    with pytest.raises(AuditError, match=r"sbom\.cdx\.json is missing or damaged"):
        page_made_by(folder, page)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("finding", lambda one: replace(one, finding=one.finding.replace("Dice", "a perfect Dice"))),
        ("privacy", lambda one: replace(one, privacy=replace(one.privacy, no_epsilon="", kind="dp_sgd"))),
        ("data", lambda one: replace(one, data=replace(one.data, left_out="Nothing"))),
        ("limits", lambda one: replace(one, limits=one.limits[:1])),
        ("smallest_group", lambda one: replace(one, smallest_group=50)),
        ("withheld_values", lambda one: replace(one, withheld_values=999)),
        ("log", lambda one: replace(one, log=replace(one.log, signer="hub", signed=4))),
        ("never_merged", lambda one: replace(one, never_merged=["elsewhere"])),
        ("card", lambda one: replace(one, card={**one.card, "Training": "At forty hospitals."})),
        ("checklists", lambda one: replace(one, checklists=[])),
    ],
)  # fmt: skip
def test_a_claim_that_does_not_follow_from_the_records_is_found(whole: Path, tmp_path: Path, name, change):
    """Whoever edits dossier.json writes its manifest anew: the claims themselves are derived again."""
    assert check_derived(whole) == ""
    folder = forged(whole, tmp_path / "d", change)
    verify_dossier(folder)
    with pytest.raises(AuditError, match=f"says of '{name}' does not follow from the records in it"):
        check_derived(folder)


def test_a_report_that_is_not_of_the_rows_is_found(whole: Path, tmp_path: Path) -> None:
    folder = forged(whole, tmp_path / "d", lambda one: one)
    path = folder / "report.html"
    path.write_text(path.read_text().replace("Dice", "DICE", 1))
    with pytest.raises(AuditError, match=r"report\.html is not the page of the records"):
        check_derived(folder)
    (folder / "run.json").unlink()
    with pytest.raises(AuditError, match=r"holds no run\.json, from which its claims follow"):
        check_derived(folder)


def test_a_small_number_of_cases_is_a_bound_in_the_records_too(tmp_path: Path) -> None:
    run = dossier_run(tmp_path / "run")
    counts = {"north": {"train": 40, "val": 3, "test": 0}}
    run.write_facts(replace(run.read_facts(), cases=counts))
    facts = RunFolder(write_dossier(run, tmp_path / "d")).read_facts()
    assert facts.cases == {"north": {"train": 40, "val": 1, "test": 0}}


def test_only_a_signature_of_a_known_issuer_verifies() -> None:
    assert standing(True, True, True, True).verified
    for signed, issuer in ((False, False), (False, True), (True, False)):
        assert not standing(signed, issuer, True, True).verified
    other = standing(True, True, False, False)
    assert (other.recomputed, other.follow) == ([], [])
    assert {"the finding", "privacy spent", "leakage audits"} <= set(other.stated)


def test_a_log_that_was_left_out_is_missed(whole: Path, tmp_path: Path) -> None:
    folder = forged(whole, tmp_path / "d", lambda one: one, without="audit.jsonl")
    with pytest.raises(AuditError, match="says who trained, and the audit log of it is missing"):
        check_claims(folder, verify_dossier(folder).manifest)
    folder = forged(
        whole, tmp_path / "e", lambda one: replace(one, provenance=[], log=None), without="audit.jsonl"
    )
    assert not check_claims(folder, verify_dossier(folder).manifest)
