"""How the hub finds its exchange and an unfinished run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hospitals import STUDY

from medfed.aggregation.fedavg import FedAvg
from medfed.deployment import hub_service as coordinator
from medfed.errors import ExchangeError, StudyError
from medfed.evaluation.report import headline, write_report
from medfed.evaluation.row_checks import StudyMeasures
from medfed.evaluation.rows import write
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.federation.config import HubConfig
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import IMAGES_IN_MM, LABELS_NAMED, RoundReport, SiteResult, append_round
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import AuditLog, entries

EXPECTED = coordinator._Expected(
    HubConfig(1, ("evil", "north"), FedAvg()),
    StudyMeasures("classify", "classify", structures=frozenset()),
    frozenset({"val/auroc", "val/accuracy"}),
)
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


def test_bad_rows_are_refused_by_name_and_the_report_is_made_of_the_rest(tmp_path):
    """What one site sent before: a group without "=", a million patients, an accuracy of 7.5."""
    rows = {
        "auroc//": (0.999, 1e6),
        "auroc//sex=F": (0.9, 50.0),
        "accuracy//": (7.5, 40.0),
        "dice//female": (0.5, 20.0),
        "auroc//sex=%3Cb%3E": (0.8, 30.0),
        "dice//": (0.99, 30.0),
    }
    scalars = {"val/auroc": 0.5, "val/accuracy": 7.5, "val/dice": 0.99}
    for name, (value, patients) in rows.items():
        scalars |= {f"row/test/federated/{name}/value": value, f"row/test/federated/{name}/n": patients}
    honest = {"row/test/federated/auroc///value": 0.7, "row/test/federated/auroc///n": 30.0}
    folder = RunFolder(tmp_path)
    first = (SiteResult("evil", "merged", examples=10), SiteResult("north", "merged", examples=120))
    append_round(folder.rounds, RoundReport(1, first, 1.0, 0))
    final = (SiteResult("evil", "reported", scalars=scalars), SiteResult("north", "reported", scalars=honest))
    audit = AuditLog(tmp_path / "audit.jsonl")
    accepted, report = coordinator._take_rows(RoundReport(2, final, 1.0, 0), EXPECTED, folder, audit)
    assert [(row.site, row.group, row.value, row.n) for row in accepted] == [
        ("evil", "sex=<b>", 0.8, 30),
        ("evil", "sex=F", 0.9, 50),
        ("north", None, 0.7, 30),
    ]
    evil, north = report.results
    assert evil.notes == (
        "a result is refused: test/federated/accuracy//: 7.5 is outside the metric's range",
        "a result is refused: test/federated/auroc//: it is of 1000000 patients, this site may have 1 to "
        "1000 in a split",
        "a result is refused: test/federated/dice//: this study does not measure it: its task is 'classify'",
        "a result is refused: test/federated/dice//female: its group is not of the form attribute=value",
        "a score is left out: val/accuracy: 7.5 is outside the metric's range",
        "numbers that the study does not declare are left out: val/dice",
    )
    assert (north.notes, north.scalars, evil.scalars) == ((), {}, {"val/auroc": 0.5})
    warned = [entry for entry in entries(tmp_path / "audit.jsonl") if entry["event"] == "warning"]
    assert [(entry["site"], entry["reason"]) for entry in warned] == [("evil", note) for note in evil.notes]
    append_round(folder.rounds, report)
    write(folder.reported, accepted)
    page = write_report(tmp_path).read_text()
    assert "accuracy//: 7.5 is outside" in page
    assert "sex=&lt;b&gt;" in page or "&lt;b&gt;" in page
    assert "<b>sex" not in page
    assert "1000000 patients." not in headline(tmp_path)


def test_a_hub_says_once_whose_labels_hold_numbers_alone():
    lines: list[str] = []
    progress, stated = SimpleNamespace(log=lines.append), {}
    for round, site, number in ((1, "north", 1.0), (2, "south", 0.0), (3, "south", 0.0), (4, "west", 7.0)):
        result = SiteResult(site, "merged", scalars={LABELS_NAMED: number})
        other = SiteResult("north", "reported", scalars={"val/dice": 1.0})
        coordinator._log_different(
            coordinator._LABELS, RoundReport(round, (result, other), 0.0, 0), stated, progress
        )
    (line,) = lines
    assert line.startswith(
        "round 2: the labels of north name their structures, and those of south hold numbers"
    )


def test_a_hub_says_once_whose_images_have_no_size_in_mm():
    lines: list[str] = []
    progress, stated = SimpleNamespace(log=lines.append), {}
    for round, site, number in ((1, "north", 1.0), (2, "south", 0.0), (3, "south", 0.0), (4, "west", 7.0)):
        result = SiteResult(site, "merged", scalars={IMAGES_IN_MM: number})
        coordinator._log_different(
            coordinator._UNITS, RoundReport(round, (result,), 0.0, 0), stated, progress
        )
    (line,) = lines
    assert line.startswith("round 2: the images of south have no size in mm and those of north have one")


@pytest.mark.parametrize(("kind", "structures"), [("segment", {"lesion"}), ("classify", set())])
def test_a_hub_knows_what_its_study_measures(tmp_path, kind, structures):
    text = TINY.replace("kind: segment", f"kind: {kind}")
    if kind == "classify":
        text = text.replace("kind: unet, channels: [4, 8], residual_units: 0", "kind: resnet, width: 4")
    text = text.replace("smallest_group: 1", "smallest_group: 1, tolerance_mm: 3")
    (tmp_path / "study.yaml").write_text(text + "sites: [north, south]\n")
    expected = coordinator._expected(read_study(tmp_path / "study.yaml"))
    measures = expected.measures
    assert ("val/dice" in expected.declared) is (kind == "segment")
    assert {"val/loss", "train/loss", "train/steps"} <= expected.declared
    assert (measures.task, measures.structures, measures.tolerance_mm) == (kind, structures, 3.0)
