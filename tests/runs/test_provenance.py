"""Who trained is who was merged: in the card, in the checklists, and computed again from the logs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from medfed.cli.commands import main
from medfed.errors import AuditError
from medfed.evaluation.report.checklists import checklists, model_card
from medfed.evaluation.report.facts import case_table, key_figures
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.run import Run
from medfed.evaluation.summarise import PublicStudy
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import check_provenance, check_sent, merges_in_log, merges_of, never_merged
from medfed.runs.rounds import RoundLine, encode_rounds, read_rounds
from medfed.wire.audit_log import AuditLog


@pytest.fixture
def folder(tmp_path):
    """Three hospitals planned: north in both rounds, south in the first, and one that never was merged."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    log = AuditLog(folder.audit)
    log.write("began", study="0" * 64, sites=["bad", "north", "south"], resumed=False)
    for number, sites in ((1, ["north", "south"]), (2, ["north"])):
        for site in sites:
            log.write("merged", site=site, round=number, bytes=100 + number, reason="")
        log.write("refused", site="bad", round=number, bytes=0, reason="not finite")
        log.write("merged", round=number, sites=sites, sha256="0" * 64)
    write_rounds(folder, ("south", 2, "late"))
    return folder


def write_rounds(folder, second):
    lines = [RoundLine(1, "north", "merged", examples=12), RoundLine(1, "south", "merged", examples=9)]
    lines += [RoundLine(2, "north", "merged", examples=12), RoundLine(second[1], second[0], second[2])]
    lines += [RoundLine(number, "bad", "refused") for number in (1, 2)]
    folder.rounds.write_bytes(encode_rounds(lines))


def run_of(folder):
    counts = {site: {"train": 12} for site in ("bad", "north", "south")}
    facts = RunFacts(sites=["bad", "north", "south"], held_out=["west"], task="segment", cases=counts)
    return Run(facts, PublicStudy({}), [], read_rounds(folder.rounds), [], 9, merges_of(folder))


def test_merges_are_those_of_the_log(folder):
    assert merges_in_log(folder.audit) == {"north": (1, 2), "south": (1,)}
    assert never_merged(merges_of(folder), ["bad", "north", "south"]) == ["bad"]
    assert check_provenance(folder) == merges_in_log(folder.audit)


def test_a_resumed_round_counts_as_it_was_merged_last(folder):
    AuditLog(folder.audit).write("merged", round=2, sites=["south"], sha256="1" * 64)
    assert merges_in_log(folder.audit) == {"north": (1,), "south": (1, 2)}


def test_no_claim_names_a_hospital_that_was_never_merged_as_trained(folder):
    run = run_of(folder)
    card = model_card(run, "finding")
    assert card["Model"].startswith("Federated learning for segmentation, fedavg over 2 hospitals")
    assert card["Trained on"] == "Trained at north, south; planned and never merged: bad"
    assert card["Who took part"].startswith(
        "north: 2 of 2 rounds, 12 cases; south: 1 of 2 rounds, 9 cases; bad: none. `medfed audit verify`"
    )
    for checklist in checklists(run):
        for answer in checklist.answers.values():
            assert "bad" not in (answer or "").split("never merged")[0]
            # West was planned to be tested and has no result.
            assert "west" not in (answer or "")
    assert dict(key_figures(run, None))["hospitals trained together"] == "2 of 3"
    assert "No update of bad was merged" in " ".join(limits(run, None))
    assert case_table(run)["lines"][0][0] == "bad (never merged)"


def test_a_run_without_a_merge_claims_nothing():
    run = Run(RunFacts(sites=["north"]), PublicStudy({}), [], [], [], None)
    assert model_card(run, "finding")["Trained on"] == "No update of a hospital was merged"
    assert model_card(run, "finding")["Who took part"] is None


def test_rounds_that_contradict_the_log_are_told(folder):
    write_rounds(folder, ("south", 2, "merged"))
    with pytest.raises(
        AuditError, match=r"site 'south': round 2 is merged in only one of it and audit\.jsonl"
    ):
        check_provenance(folder)


def sent_log(path, *rounds):
    log = AuditLog(path)
    for number, size in rounds:
        log.write("sent", site="north", round=number, to="hub", bytes=size, sha256="0" * 64)
    return path


def test_a_hospitals_own_log_confirms_what_the_hub_merged(folder, tmp_path):
    merges = merges_in_log(folder.audit)
    own = sent_log(tmp_path / "north.jsonl", (1, 101), (2, 102))
    assert check_sent(merges, own, folder.audit) == "north"
    with pytest.raises(AuditError, match="site 'north': the hub merged an update of round 2"):
        check_sent(merges, sent_log(tmp_path / "less.jsonl", (1, 101)), folder.audit)
    with pytest.raises(AuditError, match="site 'north': the hub merged an update of round 1"):
        check_sent(merges, sent_log(tmp_path / "other.jsonl", (1, 7), (2, 102)), folder.audit)
    with pytest.raises(AuditError, match="holds updates of 0 sites"):
        check_sent(merges, folder.audit, folder.audit)


def test_audit_verify_computes_who_trained(folder, tmp_path):
    own = sent_log(tmp_path / "north.jsonl", (1, 101), (2, 102))
    said = CliRunner().invoke(main, ["audit", "verify", str(folder.path), "--site-log", str(own)])
    assert said.exit_code == 0, said.output
    assert "north: merged in 2 rounds, 1 to 2" in said.output
    assert "south: merged in 1 rounds, 1 to 1" in said.output
    assert "north: what was merged is what its own log says it sent" in said.output
    lines = folder.audit.read_bytes().splitlines(keepends=True)
    folder.audit.write_bytes(b"".join(lines).replace(b'"sites":["north"]', b'"sites":["worth"]'))
    assert json.loads(folder.audit.read_bytes().splitlines()[-1])["sites"] == ["worth"]
    assert CliRunner().invoke(main, ["audit", "verify", str(folder.path)]).exit_code != 0
