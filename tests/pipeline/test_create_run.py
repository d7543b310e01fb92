"""A run's folder: which one is chosen, what is written into it, and what of it may be shared."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest

from medfed.errors import RunError
from medfed.exchange.folder import Folder
from medfed.models.pretrained.load import LoadedStart, TensorLine
from medfed.pipeline.create_run import (
    _other_classes,
    check_digest,
    check_empty,
    choose_folder,
    create_run,
    finish_run,
    open_run,
    write_study,
)
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study

STUDY = """\
name: heart
seed: 3
task: {kind: tabular, classes: [healthy, disease]}
network: {kind: fully_connected}
data: {kind: table, target: y, features: [a, b]}
train: {rounds: 1}
sites: {south: secret/south.csv, north: secret/north.csv}
held_out: {west: secret/west.csv}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("heart.yaml").write_text(STUDY)
    return read_study(Path("heart.yaml"))


@pytest.fixture
def other(study):
    Path("other.yaml").write_text(STUDY.replace("seed: 3", "seed: 4"))
    return read_study(Path("other.yaml"))


def test_the_facts_name_the_study_and_its_sites_in_order(study):
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    facts = create_run(folder, study, {})
    assert (facts.study, facts.seed, facts.task) == ("heart", 3, "tabular")
    assert (facts.sites, facts.held_out, facts.classes) == (
        ["north", "south"],
        ["west"],
        ["healthy", "disease"],
    )
    assert (facts.digest, facts.privacy.kind, facts.is_finished) == (study_digest(study), "none", False)
    opened, read, again = open_run("run")
    assert (opened, read, study_digest(again)) == (folder, facts, study_digest(study))


def test_the_public_study_has_no_folder_of_a_hospital(study):
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    exchange = Folder(url="/secret/share", credentials="/secret/north")
    write_study(folder, msgspec.structs.replace(study, start="/secret/old.ckpt", exchange=exchange))
    assert "secret" in folder.study.read_text()
    public = folder.public_study.read_text()
    assert "secret" not in public
    plain = json.loads(public)
    assert plain["exchange"] == {"kind": "folder"}
    assert (plain["sites"], plain["held_out"], plain["start"]) == (["north", "south"], ["west"], "old.ckpt")


def test_a_finished_run_says_when_and_how_long(study):
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    facts = create_run(folder, study, {})
    finish_run(folder, facts, time.monotonic() - 5)
    finished = folder.read_facts()
    assert finished.is_finished
    assert finished.seconds >= 5
    assert finished.finished >= facts.started


def start(study, name=None):
    folder = choose_folder(study, name and Path(name), resume=False)
    create_run(folder, study, {})
    return folder.path


def test_runs_of_one_study_are_numbered(study):
    assert [start(study) for _ in range(3)] == [
        Path("runs") / name for name in ("heart", "heart-2", "heart-3")
    ]
    # Folders of other studies and files of people are not counted.
    for name in ("heart-of-gold", "heart-old-9", "hearts", "heart-²"):
        (Path("runs") / name).mkdir()
    assert start(study) == Path("runs/heart-4")
    assert choose_folder(study, None, resume=True).path == Path("runs/heart-4")


def begin(path):
    """Write what a hub writes before its first model is offered."""
    RunFolder(path).hub.mkdir(parents=True, exist_ok=True)
    (RunFolder(path).hub / "round-00000.safetensors").write_bytes(b"")


def test_a_run_that_was_refused_before_it_began_is_not_gone_on_with(study, other, caplog):
    first, _refused, another = start(study), start(study), start(other)
    begin(first)
    begin(another)
    assert choose_folder(study, None, resume=True).path == Path("runs/heart")
    assert caplog.messages == [
        "runs/heart-3 is another study's run, or never began to train: this goes on with runs/heart"
    ]
    begin(Path("runs/heart-2"))
    assert choose_folder(study, None, resume=True).path == Path("runs/heart-2")


def test_a_new_run_after_a_finished_one_is_gone_on_with(study):
    first = start(study)
    begin(first)
    finish_run(RunFolder(first), RunFolder(first).read_facts(), time.monotonic())
    assert choose_folder(study, None, resume=True).path == first
    assert choose_folder(study, None, resume=True).path != start(study)
    assert choose_folder(study, None, resume=True).path == Path("runs/heart-2")


def test_the_newest_run_that_cannot_be_read_is_told(study):
    begin(start(study))
    (start(study) / "run.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        choose_folder(study, None, resume=True)


def test_a_run_of_another_study_is_not_resumed(study, other):
    start(study, "run")
    assert choose_folder(study, Path("run"), resume=True).path == Path("run")
    with pytest.raises(
        RunError, match=rf"holds a run of study {study_digest(study)[:12]}, the study file's digest"
    ):
        choose_folder(other, Path("run"), resume=True)
    with pytest.raises(RunError, match="do something else"):
        check_digest(RunFolder(Path("run")), other, "do something else")


def test_there_must_be_a_run_to_resume(study):
    with pytest.raises(RunError, match=r"runs/heart: there is no run to resume; omit --resume to start one"):
        choose_folder(study, None, resume=True)


def test_a_folder_with_files_is_not_written_into(study):
    Path("run").mkdir()
    check_empty(Path("run"), "")
    check_empty(Path("missing"), "")
    Path("run/notes.txt").touch()
    with pytest.raises(
        RunError, match="run: is not empty; resume the run with --resume, or give another --out"
    ):
        choose_folder(study, Path("run"), resume=False)


def test_comparison_models_may_be_dropped_on_resume_but_not_without_a_word(tmp_path):
    """A comparison that disappoints could otherwise be left out of the report."""
    from medfed.pipeline.create_run import choose_folder, create_run
    from medfed.study.reading import parse_study

    text = (
        "name: risk\nsites: {north: null, south: null}\n"
        "data: {kind: table, features: [a], target: y}\n"
        'task: {kind: tabular, classes: ["no", "yes"]}\n'
        "network: {kind: fully_connected, hidden: [4]}\ntrain: {rounds: 1, batch: 4}\n"
    )
    study = parse_study(text, "study.yaml")
    folder = choose_folder(study, tmp_path / "run", resume=False)
    every = ["local_models", "pooled_model", "robustness"]
    assert create_run(folder, study, {}).comparisons == every
    other = parse_study(f"{text}evaluation: {{local_models: false, seeds: 2}}\n", "study.yaml")
    assert choose_folder(other, tmp_path / "run", resume=True) == folder
    assert create_run(folder, other, {}).comparisons == [*every, "seeds"]


@pytest.mark.parametrize(
    ("what", "names", "told"),
    [
        ("loaded", ("background", "spleen"), True),
        ("new", ("background", "spleen"), False),
        ("loaded", ("Background", "Lesion"), False),
        ("loaded", (), False),
    ],
)
def test_a_last_layer_of_other_classes_is_told(what, names, told):
    """A shape that fits may mean something else: the bundle says what its outputs are."""
    lines = (TensorLine("encoder.weight", "loaded", (1,)), TensorLine("out.weight", what, (2,)))
    loaded = LoadedStart(file="b", sha256="", share=1.0, classes=names, tensors=lines)
    result = list(_other_classes(loaded, ("background", "lesion"), "out"))
    assert bool(result) == told
    if told:
        assert "outputs: background, spleen; the study's classes: background, lesion" in result[0]
