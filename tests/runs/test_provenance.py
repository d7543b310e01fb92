"""Who trained is who was merged: in the card, in the checklists, and computed again from the logs."""

from __future__ import annotations

import json

import pytest
import torch
from answering import SITES
from answering import answer as take_part
from click.testing import CliRunner

from medfed.aggregation.fedavg import FedAvg
from medfed.cli.commands import main
from medfed.errors import AuditError
from medfed.evaluation.report.checklists import checklists, model_card
from medfed.evaluation.report.facts import case_table, key_figures
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.run import Run
from medfed.evaluation.summarise import PublicStudy
from medfed.federation.config import HubConfig
from medfed.federation.simulation import simulate
from medfed.privacy import NoPrivacy
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import (
    check_heads,
    check_provenance,
    check_sent,
    joined_later,
    merges_in_log,
    merges_of,
    never_merged,
    trained_names,
)
from medfed.runs.rounds import RoundLine, encode_rounds, read_rounds
from medfed.wire.audit_log import AuditLog, entries, line_digests, verify


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
    assert "north: merged in rounds 1 to 2\n" in said.output
    assert "south: merged in round 1\n" in said.output
    assert "bad: planned, and no update of it was merged\n" in said.output
    assert "north: what was merged is what its own log says it sent" in said.output
    lines = folder.audit.read_bytes().splitlines(keepends=True)
    folder.audit.write_bytes(b"".join(lines).replace(b'"sites":["north"]', b'"sites":["worth"]'))
    assert json.loads(folder.audit.read_bytes().splitlines()[-1])["sites"] == ["worth"]
    assert CliRunner().invoke(main, ["audit", "verify", str(folder.path)]).exit_code != 0


def test_audit_verify_says_of_a_hospital_that_sent_in_vain_that_nothing_was_merged(folder, tmp_path):
    log = AuditLog(tmp_path / "bad.jsonl")
    for number in (1, 2):
        log.write("sent", site="bad", round=number, to="hub", bytes=90, sha256="0" * 64)
    verify_it = ["audit", "verify", str(folder.path), "--site-log", str(tmp_path / "bad.jsonl"), "--json"]
    said = CliRunner().invoke(main, verify_it)
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["never_merged"] == ["bad"]
    said = CliRunner().invoke(main, verify_it[:-1])
    assert "bad: no update of it was merged; its own log agrees\n" in said.output
    assert "bad: what was merged is what its own log says it sent" not in said.output


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The logs of a hub and three sites after three rounds, by party."""
    folder = tmp_path_factory.mktemp("logs")
    paths = {name: folder / f"{name}.jsonl" for name in ("hub", *SITES)}
    sites = {
        name: lambda exchange, name=name: take_part(exchange, NoPrivacy(), name, AuditLog(paths[name]))
        for name in SITES
    }
    config = HubConfig(3, SITES, FedAvg(), minimum=3)
    simulate(sites, {"a": torch.zeros(3)}, config, audit=AuditLog(paths["hub"]))
    return paths


def written_anew(log, path, change=lambda entry: entry):
    """Write a log again as its own writer could: each line linked to the one before it."""
    log, hidden = entries(log), {"number", "time", "previous", "event"}
    anew = AuditLog(path)
    for entry in filter(None, map(change, log)):
        anew.write(entry["event"], **{key: entry[key] for key in entry.keys() - hidden})
    return path


def test_hub_and_sites_keep_the_heads_of_each_others_logs(logs):
    digests = {name: line_digests(path) for name, path in logs.items()}
    kept = [entry for entry in entries(logs["hub"]) if entry["event"] == "site head"]
    assert sorted((entry["site"], entry["round"]) for entry in kept) == [
        (site, round) for site in SITES for round in (1, 2, 3, 4)
    ]
    for entry in kept:
        # The head is that of the line before the one that says that the update was sent.
        sent = [line for line in entries(logs[entry["site"]]) if line["event"] == "sent"][entry["round"] - 1]
        assert entry["head"] == sent["previous"] == digests[entry["site"]][sent["number"] - 1]
    shown = [entry["hub_head"] for entry in entries(logs["north"]) if entry["event"] == "received"]
    assert shown[0] == ""  # the hub had logged nothing yet
    merged = [entry["number"] for entry in entries(logs["hub"]) if "sha256" in entry]
    assert shown[1:] == [digests["hub"][number] for number in merged]
    assert check_heads("north", logs["north"], logs["hub"]) == ((1, 2, 3), (1, 2, 3, 4))


def _sent_less(entry):
    return {**entry, "bytes": 1} if entry["event"] == "sent" and entry["round"] == 2 else entry


def test_a_log_that_its_own_writer_wrote_anew_is_found_by_the_others(logs, tmp_path):
    north = written_anew(logs["north"], tmp_path / "north.jsonl", _sent_less)
    assert verify(north).lines == verify(logs["north"]).lines  # alone it is a valid log
    with pytest.raises(
        AuditError, match=r"the log of site 'north' lacks the line that it showed the hub in r"
    ):
        check_heads("north", north, logs["hub"])
    hub = written_anew(
        logs["hub"], tmp_path / "hub.jsonl", lambda one: one if one["event"] != "merged" else None
    )
    with pytest.raises(
        AuditError, match="the log of the hub lacks the line that it showed site 'north' in round"
    ):
        check_heads("north", logs["north"], hub)


def test_a_log_that_was_cut_is_found_by_the_others_up_to_the_last_round(logs, tmp_path):
    lines = logs["north"].read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:-1]))
    assert check_heads(
        "north", tmp_path / "cut.jsonl", logs["hub"]
    )  # only its last "sent", which nothing pins
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:-2]))
    with pytest.raises(AuditError, match="of site 'north' lacks the line that it showed the hub in round 4"):
        check_heads("north", tmp_path / "cut.jsonl", logs["hub"])


def test_audit_verify_compares_the_heads_of_hub_and_hospital(logs, tmp_path):
    def said(log):
        return CliRunner().invoke(main, ["audit", "verify", str(logs["hub"]), "--site-log", str(log)])

    honest = said(logs["north"])
    assert honest.exit_code == 0, honest.output
    assert honest.output.splitlines()[-4:-1] == [
        "north: what was merged is what its own log says it sent",
        "north: the hub kept digests of its own log in 4 rounds: not written anew or cut up to round 4",
        "north: it kept digests of the hub's log in 3 rounds: not written anew or cut up to round 3",
    ]
    anew = said(written_anew(logs["north"], tmp_path / "anew.jsonl", lambda one: {**one, "to": "hub"}))
    assert anew.exit_code == 1
    assert "was written anew or cut since" in anew.output


def test_a_party_that_showed_no_digest_is_not_said_to_be_pinned(logs, tmp_path):
    """A hub that hides its head keeps the sites' all the same; nothing is claimed of its own log."""
    bare = written_anew(logs["hub"], tmp_path / "hub.jsonl", lambda one: one)
    blind = written_anew(logs["north"], tmp_path / "north.jsonl", lambda one: {**one, "hub_head": ""})
    said = CliRunner().invoke(main, ["audit", "verify", str(logs["hub"]), "--site-log", str(blind)])
    assert "the log of site 'north' lacks the line" in said.output  # it wrote its own anew to hide that
    headless = written_anew(
        bare, tmp_path / "bare.jsonl", lambda one: None if one["event"] == "site head" else one
    )
    assert check_heads("north", blind, headless) == ((), ())
    said = CliRunner().invoke(main, ["audit", "verify", str(headless), "--site-log", str(blind)])
    assert (
        "north: the hub kept no digest of its own log: nobody can tell whether it was written" in said.output
    )
    assert "north: it kept no digest of the hub's log: nobody can tell whether it was written" in said.output


def test_a_hospital_that_joined_is_named_with_its_first_round_and_one_not_asked_before_is_not():
    merges = {"north": (1, 2, 3), "south": (2, 3), "west": (3,), "late": (2, 3)}
    lines = [
        RoundLine(round=1, site="north", status="merged"),
        RoundLine(round=1, site="south", status="not sampled"),
        RoundLine(round=1, site="late", status="absent"),
    ]
    assert joined_later(merges, lines) == {"west": 3, "late": 2}
    assert trained_names(merges, lines) == [
        "late (from round 2 on)",
        "north",
        "south",
        "west (from round 3 on)",
    ]
