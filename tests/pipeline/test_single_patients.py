"""No file of a finished run, nor of its exports, holds a value of a single patient, but those that stay."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import medfed
from medfed.evaluation.report.run_comparison import write_comparison
from medfed.evaluation.rows import read_cases
from medfed.pipeline import train as run
from medfed.pipeline.audit_report import export_log
from medfed.pipeline.dossier.write import write_dossier
from medfed.pipeline.export import export
from medfed.pipeline.watch.watch import Asked, watch
from medfed.runs.folder import RunFolder

STUDY = """\
name: three-tables
seed: 5
task: {kind: tabular, classes: [healthy, ill], loss: {kind: binary_cross_entropy}}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [x, z], target: ill, standardise: none}
train: {rounds: 2, epochs: 1, batch: 8, optimiser: {kind: sgd, lr: 0.5}}
evaluation: {draws: 20, smallest_group: 5, pooled_model: false, guarantee: 0.6, confidence: 0.6}
sites: {north: north.csv, south: south.csv, east: east.csv}
"""
# What shows single patients, by the table of files in docs/evaluation.md.
STAYS = ("cases.jsonl", "scores.jsonl", "trained.json", "tested.json", "command.txt", "own_report.html",
         "outlines.json")  # fmt: skip
# And in the folder of a watched model (docs/how-to/watch-a-model.md).
WATCH_STAYS = ("cases.jsonl", "reference.json", "earlier.json")


def table(folder: Path, site: str, tested: int) -> Path:
    generator = np.random.default_rng(len(site) + tested)
    lines = ["patient,x,z,ill,split"]
    for split, number in (("train", 8), ("val", 3), ("test", tested)):
        for one in range(number):
            x, z = generator.normal(size=2)
            lines.append(f"{split}{one}-{site},{x:.6f},{z:.6f},{one % 2},{split}")
    path = folder / f"{site}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run over hospitals with 12, 12 and 3 test patients, and one of 2 that was evaluated afterwards."""
    folder = tmp_path_factory.mktemp("single")
    for site, tested in (("north", 12), ("south", 12), ("east", 3)):
        table(folder, site, tested)
    (folder / "study.yaml").write_text(STUDY)
    done = run.train(folder / "study.yaml", out=folder / "run")
    medfed.evaluate(done.path, table(folder, "west", 2), name="west")
    run.train(folder / "study.yaml", out=folder / "other", overrides=["seed=6"])
    return done


def values_of(folder: RunFolder, path: Path | None = None) -> np.ndarray:
    """The values of single cases, without short ones such as 0.5, which any file holds by chance."""
    result = {abs(case.value) for case in read_cases(path or folder.cases) if case.value is not None}
    return np.sort(np.array([value for value in result if value * 4096 % 1 and round(value, 3) != value]))


def assert_none_in(files: list[Path], values: np.ndarray) -> None:
    for path in files:
        for name, content in contents(path):
            assert_none_of(values, name, content)


def contents(path: Path) -> list[tuple[str, bytes]]:
    """A file's bytes, and those of each member of an archive: a checkpoint and a TorchScript are zips."""
    if not zipfile.is_zipfile(path):
        return [(path.name, path.read_bytes())]
    with zipfile.ZipFile(path) as archive:
        return [(f"{path.name}/{name}", archive.read(name)) for name in archive.namelist()]


def binary_values(content: bytes) -> np.ndarray:
    """What a file would hold as numbers of its own: its bytes as float64 and float32, at every place."""
    result = []
    for kind, size in (("<f8", 8), ("<f4", 4)):
        for start in range(size):
            usable = (len(content) - start) // size * size
            result.append(np.frombuffer(content[start : start + usable], kind).astype(np.float64))
    return np.concatenate(result)


def assert_none_of(values: np.ndarray, name: str, content: bytes) -> None:
    with np.errstate(invalid="ignore"):
        assert not np.isin(values, binary_values(content)).any(), f"{name} holds a value in binary"
    text = content.decode("latin-1")
    for written in re.findall(r"\d\.\d{4,}(?:e-?\d+)?", text):
        place = np.searchsorted(values, float(written))
        near = values[max(place - 1, 0) : place + 1]
        assert not (np.abs(near - float(written)) < 1e-9).any(), f"{name} holds {written}"


def test_what_stays_does_hold_them(done: RunFolder) -> None:
    values = values_of(done)
    assert len(values) > 30
    with pytest.raises(AssertionError, match=r"cases\.jsonl holds"):
        assert_none_of(values, done.cases.name, done.cases.read_bytes())


def test_a_value_in_binary_is_found() -> None:
    content = b"abc" + np.array([0.25, 0.123456789]).tobytes()
    with pytest.raises(AssertionError, match=r"x\.bin holds a value in binary"):
        assert_none_of(np.array([0.123456789, 0.7]), "x.bin", content)
    assert_none_of(np.array([0.7, 0.9]), "x.bin", content)


@pytest.mark.slow
def test_no_file_that_may_leave_holds_one(done: RunFolder, tmp_path: Path) -> None:
    export_log(done.audit, tmp_path / "audit.html")
    export_log(done.audit, tmp_path / "audit.csv")
    for format in ("onnx", "torchscript"):
        export(done.path, tmp_path / format, format=format)
    write_dossier(done, tmp_path / "dossier")
    write_comparison([done.path, done.path.parent / "other"], tmp_path / "compared")
    places = [*done.path.rglob("*"), *tmp_path.rglob("*")]
    files = [path for path in places if path.is_file() and path.name not in STAYS]
    assert {"report.html", "rows.jsonl", "rounds.jsonl", "audit.jsonl", "run.json", "runs.html"} <= {
        path.name for path in files
    }
    assert_none_in(files, values_of(done))


@pytest.mark.slow
def test_no_page_of_a_watched_model_holds_one(done: RunFolder, tmp_path: Path) -> None:
    asked = Asked(references=[table(tmp_path, "centre", 20)], labels=True)
    watched = watch(done.path, table(tmp_path, "ward", 14), name="here", asked=asked)
    files = [path for path in watched.page.parent.iterdir() if path.name not in WATCH_STAYS]
    assert {path.name for path in files} >= {"watch.html", "sketch.json", "rows.jsonl", "looks.jsonl"}
    values = values_of(done, watched.page.parent / "cases.jsonl")
    assert len(values) >= 14
    assert_none_in([*files, done.report], values)


@pytest.mark.slow
def test_no_file_of_a_segmentation_nor_of_its_bundle_holds_one(tiny: Path, tmp_path: Path) -> None:
    """Dice, distances, volumes and shares of voxels of single patients, in a run with guarantees."""
    asked = ["evaluation.smallest_group=5", "evaluation.guarantee=0.5", "evaluation.confidence=0.5"]
    done = run.train(tiny / "tiny.yaml", out=tmp_path / "run", overrides=asked)
    bundle = export(done.path, tmp_path / "bundle", format="bundle")
    dossier = write_dossier(done, tmp_path / "dossier")
    values = np.union1d(values_of(done), values_of(done, done.scores))
    assert len(values) > 10
    places = [*done.path.rglob("*"), *bundle.rglob("*"), *dossier.iterdir()]
    files = [path for path in places if path.is_file()]
    assert {"metadata.json", "inference.json", "model.pt", "report.html"} <= {path.name for path in files}
    assert_none_in([path for path in files if path.name not in (*STAYS, "cases.html")], values)
