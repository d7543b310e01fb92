"""Every tracker gets a run's numbers and nothing else; one that fails costs no round."""

from __future__ import annotations

import csv
import logging
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import msgspec
import pytest

from medfed.deployment.site_file import read_site
from medfed.errors import StudyError
from medfed.registry import kinds
from medfed.runs.rounds import RoundReport, SiteResult
from medfed.runs.trackers import TrackedRun, Tracker, Tracking, logger_of, missing_packages
from medfed.runs.trackers.csv import Csv
from medfed.runs.trackers.mlflow import MLflow
from medfed.runs.trackers.tensorboard import TensorBoard
from medfed.runs.trackers.wandb import WandB
from medfed.study.reading import parse_study

SETTINGS = {"mlflow": {"url": "https://mlflow.example.org"}}
MERGED = SiteResult("north", "merged", bytes_up=7, scalars={"val/dice": 0.5, "val/loss": float("nan")})
REPORT = RoundReport(3, (MERGED, SiteResult("south", "absent")), 2.5, 9)


@pytest.mark.parametrize("name", sorted(kinds("trackers")))
def test_each_is_named_in_a_study_and_says_what_to_install(name, monkeypatch):
    tracker = msgspec.convert({"kind": name, **SETTINGS.get(name, {})}, kinds("trackers")[name])
    assert isinstance(tracker, Tracker)
    monkeypatch.setattr("medfed.runs.trackers._tracker.find_spec", lambda package: None)
    told = list(missing_packages([tracker]))
    assert len(told) == len(tracker.packages)
    assert all(f"'{name}' needs the package" in text and "pip install" in text for text in told)


def rows(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_round_is_a_line_of_csv_with_each_sites_numbers(tmp_path):
    tracked = Tracking([Csv()], TrackedRun(tmp_path, "lungs", "hub"))
    tracked.round(REPORT)
    tracked.close()
    (row,) = rows(tmp_path / "trackers/csv/hub/metrics.csv")
    assert {name: float(value) for name, value in row.items()} == {
        "step": 3, "round/seconds": 2.5, "round/merged": 1, "round/bytes_up": 7, "north/val/dice": 0.5,
    }  # fmt: skip


def test_a_resumed_run_empties_no_table(tmp_path):
    for _ in range(2):
        tracked = Tracking([Csv()], TrackedRun(tmp_path, "lungs", "hub"))
        tracked.round(REPORT)
        tracked.close()
    for name in ("hub", "hub-2"):
        assert len(rows(tmp_path / f"trackers/csv/{name}/metrics.csv")) == 1


def test_tensorboard_gets_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = Tracking([TensorBoard()], TrackedRun(tmp_path, "lungs", "hub"))
    tracked.round(REPORT)
    tracked.close()
    events = EventAccumulator(str(tmp_path / "trackers/tensorboard/hub")).Reload()
    (dice,) = events.Scalars("north/val/dice")
    assert (dice.step, dice.value) == (3, 0.5)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install 'medfed[wandb]'")
def test_wandb_writes_offline_files_without_a_server(tmp_path):
    tracked = Tracking([WandB()], TrackedRun(tmp_path, "lungs", "hub"))
    tracked.round(REPORT)
    tracked.close()
    assert list((tmp_path / "trackers/wandb").rglob("*.wandb"))


@dataclass
class Fake:
    """A logger that keeps what it gets, or raises."""

    error: Exception | None = None
    got: list[tuple[dict[str, float], int]] = field(default_factory=list)

    def open(self, run: TrackedRun) -> Any:
        return self

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        if self.error is not None:
            raise self.error
        self.got.append((numbers, step))

    def save(self) -> None: ...
    def finalize(self, status: str) -> None: ...


@pytest.fixture
def run(tmp_path, monkeypatch) -> TrackedRun:
    monkeypatch.setattr("medfed.runs.trackers._tracking.kind_of", lambda tracker: "fake")
    return TrackedRun(tmp_path, "lungs", "hub")


def test_one_that_fails_is_told_once_by_name_and_costs_the_other_nothing(run, caplog):
    good, broken = Fake(), Fake(ConnectionError("https://user:secret@host refused"))
    tracked = Tracking([broken, good], run)
    with caplog.at_level(logging.WARNING, "medfed.trackers"):
        for number in range(1, 4):
            tracked.log({"a": 1.0}, number)
        tracked.close()
    assert good.got == [({"a": 1.0}, 1), ({"a": 1.0}, 2), ({"a": 1.0}, 3)]
    assert [record.getMessage() for record in caplog.records] == [
        "tracker 'fake': ConnectionError; it gets nothing more of this run. rounds.jsonl has every round"
    ]


def test_one_that_hangs_holds_up_no_round_and_no_end(run, caplog, monkeypatch):
    released = threading.Event()
    hanging = Fake()
    hanging.log_metrics = lambda numbers, step: released.wait(60)  # type: ignore[method-assign]
    monkeypatch.setattr("medfed.runs.trackers._tracking.CLOSE_S", 0.05)
    tracked = Tracking([hanging], run)
    tracked.log({"a": 1.0}, 1)
    tracked.close()
    released.set()
    assert "it did not take the last numbers within 0.05 s" in caplog.text


def test_a_trainer_hands_on_numbers_and_no_settings(run):
    good = Fake()
    tracked = Tracking([good], run)
    logger = logger_of(tracked)
    logger.log_hyperparams({"data": "/srv/Mrs Smith"})
    logger.log_metrics({"train/loss": 0.25}, 4)
    tracked.close()
    assert good.got == [({"train/loss": 0.25}, 4)]


@pytest.mark.parametrize(
    "url", ["https://me:secret@host", "https://host?key=secret", "host", "file:///srv", ""]
)
def test_an_address_is_a_server_and_holds_no_secret(url):
    for tracker in (MLflow, WandB):
        with pytest.raises(
            StudyError, match=r"trackers: \w+: url: (expected|holds a name, a password or a)"
        ) as told:
            tracker(url=url)
        assert "secret@" not in str(told.value)


SITE = "name: north\ndata: data\nexchange: {kind: folder, url: share}\n"


def test_a_hospital_names_its_own_server_and_no_public_one(tmp_path, monkeypatch):
    path = tmp_path / "site.yaml"
    monkeypatch.setattr("medfed.runs.trackers._tracker.find_spec", lambda package: package)
    path.write_text(
        f"{SITE}trackers: [{{kind: mlflow, url: 'https://mlflow.hospital.example'}}, {{kind: wandb}}]\n"
    )
    assert read_site(path).trackers == (MLflow(url="https://mlflow.hospital.example"), WandB())
    for url in ("https://api.wandb.ai", "https://WANDB.ai"):
        path.write_text(f"{SITE}trackers: [{{kind: wandb, url: '{url}'}}]\n")
        with pytest.raises(
            StudyError, match=r"site\.yaml: trackers: wandb: url: .*wandb\.ai is outside of this"
        ):
            read_site(path)


def test_a_missing_package_is_refused_when_the_file_is_read(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr("medfed.runs.trackers._tracker.find_spec", lambda package: None)
    path = tmp_path / "site.yaml"
    path.write_text(f"{SITE}trackers: [{{kind: wandb}}]\n")
    refusal = (
        r"trackers\.kind: 'wandb' needs the package wandb, which is not installed here; run `pip install"
    )
    with pytest.raises(StudyError, match=refusal):
        read_site(path)
    with pytest.raises(StudyError, match=refusal):
        parse_study((tiny / "tiny.yaml").read_text() + "trackers: [{kind: wandb}]\n")


def test_a_studys_trackers_are_the_hubs_alone(tiny, tmp_path):
    """Neither the digest, nor what the sites get, nor what a report may show has them."""
    from medfed.pipeline.create_run import write_study
    from medfed.runs.folder import RunFolder
    from medfed.study.canonical import public_yaml, study_digest

    text = (tiny / "tiny.yaml").read_text()
    plain, tracked = parse_study(text), parse_study(f"{text}trackers: [{{kind: csv}}]\n")
    assert tracked.trackers == (Csv(),)
    assert study_digest(tracked) == study_digest(plain)
    assert "trackers" not in public_yaml(tracked)
    write_study(RunFolder(tmp_path), tracked)
    assert "trackers" not in (tmp_path / "study.json").read_text()


def test_a_site_refuses_a_study_that_names_trackers(tiny, tmp_path):
    """The digest does not cover them, so that a lying hub could have added some."""
    from medfed.deployment.admission import parse_offer
    from medfed.errors import ExchangeError
    from medfed.study.canonical import public_yaml, study_digest

    (tmp_path / "site.yaml").write_text(SITE)
    study = parse_study((tiny / "tiny.yaml").read_text())
    site = read_site(tmp_path / "site.yaml")
    offered = public_yaml(study)
    assert parse_offer(offered, study_digest(study), site).trackers == ()
    with pytest.raises(
        ExchangeError, match="the hub's study names trackers, to which this hospital's numbers"
    ):
        parse_offer(f"{offered}trackers: [{{kind: csv}}]\n", study_digest(study), site)
