"""No command says or writes a patient's name, id, date or file name, on good data and on broken data.

Marked words stand in folder names, file names, case ids, patients, cells and headers. They are searched in
all that a command prints and in all that it writes outside the hospital's own folder. A command that is
added to the command line without a line here fails `test_every_command_has_a_line`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import hard_series as hs
import pytest
from click.testing import CliRunner
from hospitals import make_hospital

from medfed.cli import main
from medfed.deployment.approvals import approve, head_of
from medfed.privacy.accounting.ledger import LEDGER
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study

MARK = "Qz7CANARYx9"
# `medfed predict` writes this list of tokens and case ids for the hospital, and says so by its name.
FOR_THE_HOSPITAL = "stays-in-hospital.csv"
STUDY = """\
name: marked
seed: 1
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8], residual_units: 0}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}
train: {rounds: 1, epochs: 1, batch: 2}
evaluation: {draws: 20, smallest_group: 1}
sites: {north: FOLDER/north, south: FOLDER/south}
"""
SITE = "name: north\ndata: FOLDER/north\nexchange: {kind: folder, url: nowhere}\n"


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-image.nii.gz"))


def spoil(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:80])


def replace_in_table(folder: Path, old: str, new: str) -> None:
    path = folder / "cases.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BROKEN: dict[str, Callable[[Path], object]] = {
    "good": lambda folder: None,
    "one image cut": lambda folder: spoil(images(folder)[0]),
    "three images cut": lambda folder: spoil(*images(folder)[:3]),
    "an image missing": lambda folder: images(folder)[1].unlink(),
    "an unknown split": lambda folder: replace_in_table(folder, ",train,", f",{MARK},"),
    "a class that is a name": lambda folder: replace_in_table(folder, ",1,train", f",{MARK},train"),
    "no heading": lambda folder: (folder / "cases.csv").write_text(f"{MARK},{MARK}1,{MARK}2\n{MARK},a,b\n"),
    "a heading that is a name": lambda folder: replace_in_table(folder, "image", f"imag {MARK}"),
    "one name twice": lambda folder: (folder / "cases.csv").write_text(f"{MARK},{MARK},image\na,b,c\n"),
    "a file too many": lambda folder: (folder / f"{MARK}.txt").write_text(MARK),
    "an image beside the table": lambda folder: (folder / f"{MARK}9.nii.gz").write_bytes(b"x"),
    "no table": lambda folder: (folder / "cases.csv").unlink(),
    "a folder a class": lambda folder: _into_class_folders(folder),
    "a folder a finding": lambda folder: _into_findings(folder),
    "a structure that is a name": lambda folder: _into_structures(folder),
    "a folder that is a name": lambda folder: _into_patients(folder),
}


def _into_class_folders(folder: Path) -> None:
    (folder / "cases.csv").unlink()
    for number, path in enumerate(images(folder)):
        (folder / f"{MARK}{number % 2}").mkdir(exist_ok=True)
        path.rename(folder / f"{MARK}{number % 2}" / path.name)
    for path in folder.glob("*-label.nii.gz"):
        path.unlink()


def _into_findings(folder: Path) -> None:
    """Make class folders that are taken for such, of images that are called by patients' names."""
    (folder / "cases.csv").unlink()
    for number, path in enumerate(sorted(folder.glob("*.nii.gz"))):
        (folder / ("tumour" if number % 2 else "healthy")).mkdir(exist_ok=True)
        path.rename(folder / ("tumour" if number % 2 else "healthy") / f"{MARK}{number}.nii.gz")


def _into_structures(folder: Path) -> None:
    """Make a folder per structure, one of which is called by a patient's name and is in that case alone."""
    (folder / "cases.csv").unlink()
    (folder / "images").mkdir()
    for name in ("lesion", f"{MARK}s tumour"):
        (folder / "labels" / name).mkdir(parents=True)
    for number, path in enumerate(images(folder)):
        own = path.name.replace("image", "label")
        path.rename(folder / "images" / f"{MARK}{number}.nii.gz")
        (folder / own).rename(folder / "labels" / "lesion" / f"{MARK}{number}.nii.gz")
    first = folder / "labels" / "lesion" / f"{MARK}0.nii.gz"
    shutil.copy(first, folder / "labels" / f"{MARK}s tumour" / first.name)


def _into_patients(folder: Path) -> None:
    """Make a folder per patient, called by its name, with a report of the patient beside the images."""
    (folder / "cases.csv").unlink()
    for number, path in enumerate(images(folder)):
        own = folder / f"{MARK}, Ann {number}"
        own.mkdir()
        (folder / path.name.replace("image", "label")).rename(own / "segmentation.nii.gz")
        path.rename(own / "imaging.nii.gz")
        (own / f"{MARK}.pdf").write_text(f"%PDF {MARK}")


@dataclass(frozen=True)
class World:
    """A folder of marked hospitals, a study of them, and a run of that study."""

    base: Path

    @property
    def data(self) -> Path:
        return self.base / f"{MARK}data"

    @property
    def north(self) -> Path:
        return self.data / "north"

    @property
    def run(self) -> Path:
        return self.base / "run"

    @property
    def study(self) -> Path:
        return self.base / "study.yaml"

    @property
    def print(self) -> Path:
        return self.base / "print.json"


def world_at(base: Path, breaks: Callable[[Path], object] = BROKEN["good"]) -> World:
    world = World(base)
    for site in ("north", "south"):
        make_hospital(world.data / site, mark=MARK)
    breaks(world.north)
    world.study.write_text(STUDY.replace("FOLDER", str(world.data)))
    (base / "site.yaml").write_text(SITE.replace("FOLDER", str(world.data)))
    return world


def run(*arguments: object) -> str:
    """Run a command line in this process and return all that it says; no command ends in a traceback."""
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    if isinstance(result.exception, Exception):
        raise AssertionError(f"{arguments[0]} ended in {type(result.exception).__name__}")
    return result.output


def assert_silent(said: str, *written: Path, own: tuple[str, ...] = ()) -> None:
    """Assert that no mark is in what was said or written; `own` are folders that the caller named."""
    for words in own:
        said = said.replace(words, "")
    assert MARK.lower() not in said.lower(), said
    for file in files_in(*written):
        if file.name == FOR_THE_HOSPITAL:
            continue
        content = file.read_bytes()
        for words in own:
            content = content.replace(words.encode(), b"")
        assert MARK.lower() not in file.name.lower()
        assert MARK.encode().lower() not in content.lower(), file.name


def files_in(*paths: Path) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (one for one in path.rglob("*") if one.is_file())


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the few cases in this process: starting others takes seconds each time."""
    monkeypatch.setattr("medfed.data.preflight.examination.MAX_PROCESSES", 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Hospitals whose study was trained by the command line, which said nothing of a patient."""
    world = world_at(tmp_path_factory.mktemp("world"), BROKEN["one image cut"])
    said = run("train", world.study, "--out", world.run)
    assert (world.run / "report.html").exists(), said
    (world.base / "said.txt").write_text(said)
    run("fingerprint", "make", world.north, world.print, "--min-patients", "1", "--classes", "2")
    return world


def _check(world: World, out: Path) -> str:
    page, site = out / "page.html", world.base / "site.yaml"
    said = run("check", world.north, "--study", world.study, "--page", page)
    said += run("check", "--site", site, "--study", world.study) + run("check", world.north, "--json")
    return said


def _deidentify(world: World, out: Path) -> str:
    source = world.data / f"{MARK}dicom"
    source.mkdir(exist_ok=True)
    series = hs.Series(shape=(8, 8, 2))
    for k in range(2):
        header = hs.make_slice(series, k)
        header.PatientID, header.PatientName = f"{MARK}1", f"{MARK}^Ann"
        header.PatientComments = header.InstitutionName = f"{MARK} was here"
        hs.write(header, source / f"{MARK}{k}.dcm")
    (source / f"{MARK}.txt").write_text(MARK)
    spoiled = source / f"{MARK}9.dcm"
    spoiled.write_bytes((source / f"{MARK}0.dcm").read_bytes()[:200])
    return run("deidentify", source, out / "clean")


def _site_in(world: World, out: Path) -> Path:
    """Write a hospital's site file into `out`, where its secret, approvals and ledger then are."""
    site = out / "site.yaml"
    site.write_text(SITE.replace("FOLDER", str(world.data)))
    return site


def _approvals(world: World, out: Path) -> str:
    site, study = _site_in(world, out), read_study(world.study)
    said = run("approvals", site)
    approve(out / "runs", study, "a person", head_of(out / "secret"))
    said += run("approvals", site, "--revoke", study_digest(study)) + run("approvals", site)
    assert said.count("revoked") == 2
    return said


def _ledger(world: World, out: Path) -> str:
    site = _site_in(world, out)
    said = run("audit", "ledger", site)
    (out / "runs").mkdir(exist_ok=True)
    ledger = out / "runs" / LEDGER
    ledger.write_text(f'{{"patient": "{MARK}"}}\n')
    said += run("audit", "ledger", site) + run("audit", "ledger", site, "--adopt")
    ledger.unlink()
    assert said.count("privacy ledger, line 1:") == 2
    return said


# What each command is run with on marked data. A command that never sees a hospital's data says so instead.
LINES: dict[str, Callable[[World, Path], str] | str] = {
    "train": lambda world, out: (world.base / "said.txt").read_text(),
    "hub": lambda world, out: run("hub", world.study, "--out", out / "hub"),
    "evaluate": lambda world, out: run("evaluate", world.run, "--data", world.north, "--name", "again"),
    "predict": lambda world, out: run(
        "predict", world.run, "--data", world.north, "--out", out / "predicted"
    ),
    "export": lambda world, out: (
        run("export", world.run, "--out", out / "exported", "--format", "torchscript")
        + run("export", world.run, "--dossier", "--out", out / "dossier")
    ),
    "report": lambda world, out: run("report", world.run, world.run, "--out", out / "compared"),
    "check": _check,
    "deidentify": _deidentify,
    "kinds": lambda world, out: run("kinds"),
    "new": lambda world, out: run(
        "new", out / "new.yaml", f"north={world.north}", f"south={world.data / 'south'}"
    ),
    "fingerprint make": lambda world, out: run(
        "fingerprint", "make", world.north, out / "print.json", "--min-patients", "1", "--classes", "2"
    ),
    "fingerprint merge": lambda world, out: run("fingerprint", "merge", world.print, world.print),
    "purge": lambda world, out: run("purge", world.north),
    "audit verify": lambda world, out: run("audit", "verify", world.run),
    "audit ledger": _ledger,
    "approvals": _approvals,
    "audit export": lambda world, out: run("audit", "export", world.run, "--out", out / "audit.html"),
    "audit leakage": lambda world, out: run(
        "audit", "leakage", world.run, "--site", "north", "--steps", "1", "--shadows", "0", "--cases", "1",
        "--out", out / "leakage",
    ),
    "describe": lambda world, out: run("describe", world.study, "--out", out / "described"),
    # Its server runs until Ctrl-C; this is all that its page shows.
    "watch": lambda world, out: run("watch", world.run, "--json"),
    "watch-model": lambda world, out: run(
        "watch-model", world.run, "--data", world.data / "south", "--reference", world.north,
        "--name", "again",
    ) + run("watch-model", world.run, "--data", world.north, "--name", "none"),
    "demo": "synthetic hospitals alone: it reads no hospital's data",
    "enrol": "certificates alone: it reads no hospital's data",
    "broker": "messages between parties alone: it reads no hospital's data",
    "plugins": "packages of one's own alone: it reads no hospital's data",
}  # fmt: skip


def commands(group: click.Group, above: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{above} {name}".strip()
        if isinstance(command, click.Group) and not isinstance(LINES.get(full), str):
            yield from commands(command, full)
        else:
            yield full


def test_every_command_has_a_line() -> None:
    assert sorted(commands(main)) == sorted(LINES)


@pytest.mark.parametrize("name", [name for name, line in LINES.items() if not isinstance(line, str)])
def test_no_command_names_a_patient(world: World, tmp_path: Path, name: str) -> None:
    line = LINES[name]
    assert not isinstance(line, str)
    said = line(world, tmp_path)
    # The folders that the person at the keyboard named may be repeated, and nothing within them.
    own = (str(world.data), str(world.north.resolve()))
    assert_silent(
        said,
        tmp_path,
        *([world.run] if name in ("train", "evaluate", "report", "watch-model") else []),
        own=own,
    )


@pytest.mark.parametrize("name", BROKEN)
def test_no_refusal_names_a_patient(tmp_path: Path, name: str) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    world = world_at(base, BROKEN[name])
    own = (str(world.data),)
    for command in ("check", "new", "fingerprint make", "purge"):
        line = LINES[command]
        assert not isinstance(line, str)
        assert_silent(line(world, out), out, own=own)


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert_silent(json.dumps({"case": MARK.lower()}))
    (tmp_path / "a.txt").write_text(f"..{MARK}..")
    with pytest.raises(AssertionError):
        assert_silent("", tmp_path)
    shutil.copy(tmp_path / "a.txt", tmp_path / f"{MARK}.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(AssertionError):
        assert_silent("", tmp_path)
