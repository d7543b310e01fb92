"""How the hub finds its exchange and an unfinished run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hospitals import STUDY

from medfed.deployment import hub_service as coordinator
from medfed.errors import ExchangeError, StudyError
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import LABELS_NAMED, RoundReport, SiteResult
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study

TINY = STUDY.format(rounds=3).partition("sites:")[0]


def exchange(folder: Path, said: str, enrolment: Path | None = None, broker: bool = False):
    path = folder / "study.yaml"
    path.write_text(TINY + f"sites: [north, south]\n{said}")
    return coordinator.exchange_of(read_study(path), path, enrolment, broker)


def test_a_hub_finds_its_sites_by_its_enrolment(tmp_path):
    from medfed.deployment.enrolment import enrol

    enrol.init(tmp_path / "enrolment", "test", ["hub.example.org"], 5222, 5443)
    own = str(tmp_path / "enrolment" / "hub")
    assert exchange(tmp_path, "", tmp_path / "enrolment") == Nats(credentials=own)
    # A hub beside its broker reaches it without a way round through the firewall.
    beside = exchange(tmp_path, "", tmp_path / "enrolment", broker=True)
    assert beside.urls == ["tls://127.0.0.1:5222", "tls://hub.example.org:5222", "wss://hub.example.org:5443"]
    shared_folder = exchange(tmp_path, "exchange: {kind: folder, url: share}", tmp_path / "enrolment")
    assert shared_folder == Folder(url=str(tmp_path / "share"), credentials=own)


def test_a_hub_without_an_exchange_says_what_to_set(tmp_path):
    with pytest.raises(
        StudyError, match="'memory' connects sites within one process; give --enrolment FOLDER"
    ):
        exchange(tmp_path, "")
    with pytest.raises(StudyError, match="--broker starts the broker of an enrolment"):
        exchange(tmp_path, "exchange: {kind: folder, url: share}", broker=True)
    with pytest.raises(ExchangeError, match="this folder holds no federation"):
        exchange(tmp_path, "", tmp_path / "nothing")


def test_a_run_that_was_not_finished_is_found_and_another_studys_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(TINY + "sites: [north, south]\n")
    study = read_study(tmp_path / "study.yaml")
    assert coordinator._unfinished(study) is None
    RunFolder(Path("runs/tiny")).write_facts(RunFacts(digest=study_digest(study)))
    RunFolder(Path("runs/tiny-2")).write_facts(RunFacts(digest="of another"))
    assert coordinator._unfinished(study) == Path("runs/tiny")
    RunFolder(Path("runs/tiny")).write_facts(RunFacts(digest=study_digest(study), finished="now"))
    assert coordinator._unfinished(study) is None


def test_a_hub_says_once_whose_labels_hold_numbers_alone():
    lines: list[str] = []
    progress, told = SimpleNamespace(log=lines.append), {}
    for round, site, number in ((1, "north", 1.0), (2, "south", 0.0), (3, "south", 0.0), (4, "west", 7.0)):
        result = SiteResult(site, "merged", scalars={LABELS_NAMED: number})
        other = SiteResult("north", "reported", scalars={"val/dice": 1.0})
        coordinator._log_different_labels(RoundReport(round, (result, other), 0.0, 0), told, progress)
    (line,) = lines
    assert line.startswith(
        "round 2: the labels of north name their structures, and those of south hold numbers"
    )
