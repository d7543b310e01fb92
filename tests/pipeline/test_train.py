"""`medfed train` for whoever runs it: its files, kills and resumption, unusable folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fsspec.implementations.local import get_umask
from hospitals import make_hospital, write_study

import medfed
from medfed.errors import DataError, MedfedError, RunError, StudyError
from medfed.evaluation.rows import read_cases
from medfed.pipeline import train as run
from medfed.pipeline.create_run import create_run
from medfed.pipeline.factory import data_scalars, egress_of, hospital_of, module_of
from medfed.pipeline.report import report_run
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import LABELS_NAMED
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import verify
from medfed.wire.weights import digest as weights_digest

MEDFED = Path(sys.executable).parent / "medfed"


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    # Whatever this person's umask: a test below looks at every file.
    before = os.umask(0)
    # fsspec, through which Lightning writes, remembers the first umask that it saw.
    get_umask.cache_clear()
    get_umask(0o666)
    try:
        return run.train(tiny / "tiny.yaml", out=tmp_path_factory.mktemp("run") / "new" / "tiny")
    finally:
        os.umask(before)
        get_umask.cache_clear()


def final(folder: Path) -> str:
    return weights_digest(
        torch.load(folder / "checkpoints" / "federated.ckpt", weights_only=True)["state_dict"]
    )


def test_a_run_folder_holds_what_it_promises(done, tiny):
    facts = json.loads(done.facts.read_text())
    assert facts["digest"] == study_digest(read_study(tiny / "tiny.yaml"))
    assert facts["cases"]["north"] == {"train": 4, "val": 1, "test": 1}
    assert facts["versions"]["torch"] == torch.__version__
    assert read_study(done.study).train.rounds == 3
    assert list((done.path / "sites" / "north" / "tensorboard").glob("events.*"))
    assert verify(done.audit).lines > 10
    assert "<!doctype html>" in done.report.read_text()[:200].lower()
    lines = [json.loads(line) for line in done.rounds.read_text().splitlines()]
    assert {(line["round"], line["site"]) for line in lines} == {
        (r, s) for r in (1, 2, 3, 4) for s in ("north", "south")
    }
    assert all(line["bytes_up"] > 5_000 for line in lines if line["round"] < 4)
    assert all("val/dice" in line["scalars"] for line in lines)


def test_everything_is_its_owners_alone_whatever_the_umask(done):
    written = [done.path.parent, *done.path.parent.rglob("*")]
    names = {path.name for path in written}
    assert names >= {
        "cases.jsonl",
        "cases.html",
        "last.ckpt",
        "tensorboard",
        "rows.jsonl",
        "audit.jsonl",
        "hub",
    }
    modes = {path.name: path.stat().st_mode & 0o777 for path in written}
    wrong = {name: oct(mode) for name, mode in modes.items() if mode not in (0o600, 0o700)}
    assert wrong == {}
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in written if path.is_dir())


def test_a_run_folder_that_others_can_read_is_told(done, tiny, tmp_path, caplog):
    (tmp_path / "old").mkdir(mode=0o755)
    (tmp_path / "old" / "cases.jsonl").write_text("{}")
    (tmp_path / "old" / "cases.jsonl").chmod(0o644)
    create_run(RunFolder(tmp_path / "old"), read_study(tiny / "tiny.yaml"), {})
    assert f"chmod -R go= {tmp_path / 'old'}" in caplog.text


def test_every_model_is_measured_on_every_hospital(done):
    rows = read_cases(done.cases)
    models = {"untrained", "federated", "pooled", "local:north", "local:south"}
    assert {row.model for row in rows} == models
    cases = {(row.model, row.site): set() for row in rows}
    for row in rows:
        cases[row.model, row.site].add(row.case)
    assert {site: len(cases["federated", site]) for site in ("north", "south", "west")} == {
        "north": 1,
        "south": 1,
        "west": 6,
    }


def test_checkpoints_are_read_by_torch_and_by_lightning(done, tiny):
    study = read_study(tiny / "tiny.yaml")
    module = module_of(study)
    loaded = torch.load(done.checkpoint("federated"), weights_only=True)
    module.load_state_dict(loaded["state_dict"])
    import pytorch_lightning as pl

    hospital = hospital_of(study, "north", study.sites["north"])
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.validate(module, datamodule=hospital.data, ckpt_path=done.checkpoint("federated"), verbose=False)


def test_the_same_study_gives_the_same_bytes(done, tiny, tmp_path):
    assert final(run.train(tiny / "tiny.yaml", out=tmp_path / "again").path) == final(done.path)


def test_the_library_and_the_command_do_the_same(done, tiny, tmp_path):
    result = medfed.evaluate(done.path, tiny / "west", name="ours", all_cases=True)
    rows = [
        row
        for row in read_cases(result.cases)
        if row.site == "ours" and row.model == "federated" and row.condition is None
    ]
    before = [
        row
        for row in read_cases(result.cases)
        if row.site == "west" and row.model == "federated" and row.condition is None
    ]
    assert sorted(row.value or 0 for row in rows) == pytest.approx(sorted(row.value or 0 for row in before))


def test_images_that_trained_are_not_measured_under_another_name(done, tiny):
    result = medfed.evaluate(done.path, tiny / "north", name="another", all_cases=True)
    assert len({row.case for row in read_cases(result.cases) if row.site == "another"}) == 1
    assert result.read_facts().seen["another"] == 5  # four trained, one chose the model


def test_a_folder_that_holds_a_run_is_not_overwritten(done, tiny):
    with pytest.raises(RunError, match="is not empty; resume the run with --resume, or give another --out"):
        run.train(tiny / "tiny.yaml", out=done.path)


def test_another_studys_run_is_not_resumed(done, tiny):
    with pytest.raises(RunError, match="holds a run of study"):
        run.train(tiny / "tiny.yaml", out=done.path, overrides=["train.rounds=9"], resume=True)


def test_a_finished_run_resumes_to_itself(done, tiny):
    before = final(done.path)
    run.train(tiny / "tiny.yaml", out=done.path, resume=True)
    assert final(done.path) == before


BROKEN = {
    "no folder": (lambda site: shutil.rmtree(site), "site 'south': the site's data folder is not a folder"),
    "empty folder": (
        lambda site: [path.unlink() for path in site.iterdir()],
        "site 'south': .*holds nothing that medfed knows",
    ),
    "two missing images": (
        lambda site: [(site / f"south{n}-image.nii.gz").unlink() for n in (0, 1)],
        "site 'south': 2 of 6 cases cannot be used .2 image missing., and at most 1 may be left out",
    ),
}


@pytest.mark.parametrize("breaks, message", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_refused_before_anything_trains(tmp_path, breaks, message):
    for name in ("north", "south", "west"):
        make_hospital(tmp_path / name)
    breaks(tmp_path / "south")
    with pytest.raises(DataError, match=message) as caught:
        run.train(write_study(tmp_path), out=tmp_path / "run")
    assert "south1" not in str(caught.value)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def name_labels(site: Path) -> None:
    """Make a folder Decathlon's, whose dataset.json names the number that the other sites leave unnamed."""
    for number in range(6):
        for kind, place in (("image", "imagesTr"), ("label", "labelsTr")):
            (site / place).mkdir(exist_ok=True)
            (site / f"{site.name}{number}-{kind}.nii.gz").rename(site / place / f"{number}.nii.gz")
    (site / "cases.csv").unlink()
    pairs = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in range(6)]
    labels = {"0": "background", "1": "lesion"}
    (site / "dataset.json").write_text(json.dumps({"labels": labels, "training": pairs}))


def test_names_at_one_site_and_numbers_alone_at_others_are_refused(tmp_path):
    for name in ("north", "south", "west"):
        make_hospital(tmp_path / name)
    name_labels(tmp_path / "south")
    study = read_study(write_study(tmp_path))
    assert set(run.open_hospitals(study, Progress())[0]) == {"north", "south", "west"}  # it has one class
    more = "task.classes=[background, lesion, cyst]"
    with pytest.raises(
        DataError, match=r"labels of south name their structures, and those of north, west hold"
    ):
        run.train(tmp_path / "tiny.yaml", out=tmp_path / "run", overrides=[more])
    words = [more] + [f"site_overrides.{site}.classes={{1: lesion}}" for site in ("north", "west")]
    study = read_study(tmp_path / "tiny.yaml", words)
    hospitals, unusable = run.open_hospitals(study, Progress())
    assert {site: one.data.index.labels_by for site, one in hospitals.items()} == {
        "north": "stated", "south": "names", "west": "stated",
    }  # fmt: skip
    assert not unusable
    sent = {site: data_scalars(one.data) for site, one in hospitals.items()}
    assert sent == {"north": {}, "south": {LABELS_NAMED: 1.0}, "west": {}}
    assert LABELS_NAMED in egress_of(study, smallest_group=None).scalars


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A study in which east has one label with an unknown class, and far has lost half of its images."""
    import nibabel
    import numpy as np

    base = tmp_path_factory.mktemp("spoiled")
    for name in ("north", "south", "west", "east", "far"):
        make_hospital(base / name)
    path = base / "east" / "east0-label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((16,) * 3, 7, np.uint8), np.diag([2.0, 2, 2, 1])), path)
    for number in range(3):
        (base / "far" / f"far{number}-image.nii.gz").unlink()
    # The same image in two splits of north.
    shutil.copy(base / "north" / "north0-image.nii.gz", base / "north" / "north5-image.nii.gz")
    study = write_study(base, rounds=1)
    study.write_text(study.read_text().replace("south: south}", "south: south, east: east, far: far}"))
    return base, run.train(study, out=base / "run")


def lines_of(run_folder, site: str) -> list[dict]:
    lines = [json.loads(line) for line in run_folder.rounds.read_text().splitlines()]
    return [line for line in lines if line["site"] == site]


def test_a_bad_case_is_left_out_and_the_weight_is_of_what_was_trained_on(spoiled):
    base, done = spoiled
    first = lines_of(done, "east")[0]
    assert first["status"] == "merged"
    assert first["examples"] == 3  # of the four training cases one was left out
    assert first["scalars"]["left_out/label without classes of the study"] == 1
    assert lines_of(done, "south")[0]["examples"] == 4
    facts = done.read_facts()
    assert facts.left_out == {"east": {"label without classes of the study": 1}}
    assert facts.cases["east"] == {"train": 3, "val": 1, "test": 1}
    (note,) = (base / "east").rglob("unusable-cases.csv")
    assert "east0" in note.read_text()


def test_a_sites_data_error_stops_that_site_only(spoiled):
    _, done = spoiled
    (line,) = [line for line in lines_of(done, "far") if line["round"] == 1]
    assert line["status"] == "absent"
    assert "site 'far': 3 of 6 cases cannot be used (3 image missing)" in line["reason"]
    assert "far0" not in line["reason"]
    assert not done.checkpoint("local:far").exists()


def test_report_and_model_card_say_what_was_left_out_and_what_is_there_twice(spoiled):
    _, done = spoiled
    page = done.report.read_text()
    assert "east left out 1 of its cases because they cannot be used (1 label without classes" in page
    assert "east: 1 unusable (1 label without classes of the study)" in page
    assert "Nothing was measured at far: site &#39;far&#39;: 3 of 6 cases cannot be used" in page
    assert "far alone is missing from the comparison: " in page
    assert "north: 1 image is in several splits under different cases" in page
    assert not any(mark in page for mark in ("east0", "far0", "north0"))


def test_as_many_sites_as_a_round_needs_must_have_data(tmp_path):
    for name in ("north", "south", "west"):
        make_hospital(tmp_path / name)
    shutil.rmtree(tmp_path / "south")
    with pytest.raises(DataError, match="site 'south': the site's data folder is not a folder"):
        run.train(write_study(tmp_path), out=tmp_path / "run", overrides=["sampling.minimum=2"])


def test_a_study_that_names_no_site(tmp_path):
    study = write_study(tmp_path)
    study.write_text(study.read_text().partition("sites:")[0])
    with pytest.raises(StudyError, match="names no site"):
        run.train(study, out=tmp_path / "run")


# ------------------------------------------------------------------------------------------- the command line


def command(*arguments: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [MEDFED, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Whoever runs the tests in the background of a shell ignores Ctrl-C, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_round(folder: Path, number: int, process: subprocess.Popen) -> None:
    """Wait until a round is written down."""
    for _ in range(1200):
        if (folder / "rounds.jsonl").exists() and f'"round":{number},' in (
            folder / "rounds.jsonl"
        ).read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the round never came")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(tiny, tmp_path, how):
    study = tmp_path / "tiny.yaml"
    study.write_text(
        (tiny / "tiny.yaml")
        .read_text()
        .replace("rounds: 3", "rounds: 12")
        .replace("north: north", f"north: {tiny}/north")
        .replace("south: south", f"south: {tiny}/south")
        .replace("west: west", f"west: {tiny}/west")
    )
    undisturbed = command(
        "train", str(study), "--out", "a", "--set", "evaluation.local_models=false", cwd=tmp_path
    )
    out, err = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, err
    assert "report: a/report.html" in out
    killed = command(
        "train", str(study), "--out", "b", "--set", "evaluation.local_models=false", cwd=tmp_path
    )
    wait_for_round(tmp_path / "b", 5, killed)
    killed.send_signal(how)
    _, err = killed.communicate(timeout=60)
    assert killed.returncode == (-9 if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert "the same command with --resume continues after the last round" in err
    resumed = command(
        "train", str(study), "--out", "b", "--set", "evaluation.local_models=false", "--resume", cwd=tmp_path
    )
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert "round 1/12" not in out
    assert final(tmp_path / "b") == final(tmp_path / "a")


# ---------------------------------------------------------------------------------------------- the canary


def test_nothing_of_a_patient_is_in_any_byte_that_is_sent_or_shared(tmp_path, monkeypatch):
    """Mark names, paths, headers and cells; train; search every message, log, checkpoint and
    report for the marks.
    """
    from medfed.wire import encoding as wire

    mark = "Qz7CANARYx9"
    for name in ("north", "south", "west"):
        make_hospital(tmp_path / f"{mark}data" / name, mark=mark)
    study = write_study(tmp_path / f"{mark}data", rounds=2)
    sent: list[bytes] = []

    def listened(encode):
        def listening(*args, **kwargs):
            pieces = list(encode(*args, **kwargs))
            sent.append(b"".join(pieces))
            return iter(pieces)

        return listening

    for verb in ("update_pieces", "global_pieces"):
        monkeypatch.setattr(wire, verb, listened(getattr(wire, verb)))
    done = run.train(study, out=tmp_path / "run")
    assert len(sent) > 6
    shared = {
        path: path.read_bytes()
        for path in done.path.rglob("*")
        if path.is_file() and path not in (done.study, done.cases)
    }
    assert {done.report, done.audit, done.rounds, done.rows} <= set(shared)
    shared[Path("(sent)")] = b"".join(sent)
    import base64
    import zipfile

    needles = [mark.encode(), mark.encode("utf-16-le"), base64.b64encode(mark.encode())[:-2]]
    for path, data in shared.items():
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data += b"".join(archive.read(name) for name in archive.namelist())
        for needle in needles:
            assert needle not in data, path.name


def test_errors_are_medfeds(tmp_path):
    with pytest.raises(MedfedError, match="not a run folder"):
        report_run(tmp_path)
