"""A study planned from all its hospitals' fingerprints, and what of them crosses and is kept."""

from __future__ import annotations

import hashlib
import json
import os

import msgspec
import nibabel as nib
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hospitals import make_hospital, write_study
from PIL import Image

from medfed.cli import main
from medfed.data.fingerprint import fingerprint, from_json, merge, to_json
from medfed.data.index import index_folder
from medfed.data.proposal import propose_settings
from medfed.data.splits import simulated_secret
from medfed.errors import DataError, StudyError
from medfed.pipeline import train as run
from medfed.pipeline.describing import describe_here
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.planning import PlanFiles, needs_plan, plan_from, plan_study
from medfed.study.canonical import study_digest
from medfed.study.reading import parse_study, read_study
from medfed.wire.audit_log import entries


@pytest.fixture
def study_file(tmp_path):
    for name in ("north", "south", "west"):
        make_hospital(tmp_path / name)
    path = write_study(tmp_path, rounds=1)
    text = path.read_text().replace(
        "patch: [16, 16, 16]}",
        "patch: [16, 16, 16], cache: disk, plan: {min_patients: 2, intensity_bins: hu, voxels: 4096}}",
    )
    path.write_text(text + "\n")
    return path


def prints_of(study):
    return {
        site: fingerprint(
            index_folder(where, site_secret=simulated_secret(study.seed, site)),
            grid="hu",
            classes=2,
            min_count=2,
        )
        for site, where in study.sites.items()
    }


def test_a_study_is_planned_from_the_sum_of_its_hospitals_fingerprints(study_file, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    study = read_study(study_file)
    done = run.train(study, out=tmp_path / "run")
    given = prints_of(study)
    want = propose_settings(merge(given.values()), voxels=4096)
    data = read_study(done.study).data
    assert data.plan == "given"
    assert (list(data.spacing_mm), list(data.patch)) == (want["spacing_mm"], want["patch"])
    assert data.normalise.mean == want["normalise"]["mean"]
    sent = [entry for entry in entries(done.audit) if entry.get("what") == "fingerprint"]
    assert {entry["site"]: entry["sha256"] for entry in sent} == {
        site: hashlib.sha256(to_json(one)).hexdigest() for site, one in given.items()
    }
    assert from_json((done.path / "fingerprint.json").read_bytes()) == merge(given.values())
    # The digest is that of the file that the hospitals agreed to, so that the run can be resumed with it.
    assert json.loads(done.facts.read_text())["digest"] == study_digest(study)
    run.train(study, out=tmp_path / "run", resume=True)
    assert len([entry for entry in entries(done.audit) if entry.get("what") == "fingerprint"]) == 2
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert cached
    assert {path.stat().st_mode & 0o077 for path in cached} == {0}
    purged = CliRunner().invoke(main, ["purge"])
    assert "prepared cases deleted" in purged.output
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_hospital_with_few_patients_sends_none(study_file, tmp_path):
    study = read_study(study_file, ["data.plan.min_patients=5"])
    lines: list[str] = []
    data = {site: hospital_of(study, site, where).data for site, where in study.sites.items()}
    with pytest.raises(DataError, match=r"no site has the 5 training patients .*data\.plan\.min_patients"):
        plan_study(
            study,
            data,
            PlanFiles(tmp_path / "sum.json", tmp_path / "t.json"),
            run.AuditLog(None),
            lines.append,
        )
    assert [line.split(":")[0] for line in lines] == ["north", "south"]
    assert not (tmp_path / "sum.json").exists()


def test_hospitals_on_their_own_machines_make_and_the_coordinator_merges(study_file, tmp_path):
    (tmp_path / "secret").write_bytes(os.urandom(32))
    runner = CliRunner()
    for site in ("north", "south"):
        made = runner.invoke(
            main,
            ["fingerprint", "make", str(tmp_path / site), str(tmp_path / f"{site}.json"), "--secret",
             str(tmp_path / "secret"), "--intensity-bins", "hu", "--classes", "2", "--min-patients", "2"],
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        assert "4 training cases of 4 patients" in made.output
    merged = runner.invoke(
        main, ["fingerprint", "merge", str(tmp_path / "north.json"), str(tmp_path / "south.json")]
    )
    section = yaml.safe_load(merged.output)["data"]
    parts = [from_json((tmp_path / f"{site}.json").read_bytes()) for site in ("north", "south")]
    assert section == propose_settings(merge(parts))
    (tmp_path / "north.json").write_text("{}")
    merged = runner.invoke(main, ["fingerprint", "merge", str(tmp_path / "north.json")])
    assert merged.exit_code == 1
    assert "not a fingerprint" in merged.output


def test_a_fingerprint_has_the_studys_channels_in_its_order(tmp_path):
    for name in ("a", "b"):
        for place, value in (("t1", 100), ("flair", 300), ("seg", 1)):
            (tmp_path / "site" / place).mkdir(parents=True, exist_ok=True)
            array = np.full((8, 8, 8), value, np.float32 if place != "seg" else np.uint8)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "site" / place / f"{name}.nii.gz")
    (tmp_path / "secret").write_bytes(b"7" * 32)

    def make(channels):
        words = ["--secret", str(tmp_path / "secret"), "--intensity-bins", "hu", "--classes", "2"]
        words += ["--channels", channels, "--min-patients", "1"]
        return CliRunner().invoke(
            main, ["fingerprint", "make", str(tmp_path / "site"), str(tmp_path / "f.json"), *words]
        )

    for channels, means in (("t1,flair", [100, 300]), ("flair, t1", [300, 100])):
        made = make(channels)
        assert made.exit_code == 0, made.output
        one = from_json((tmp_path / "f.json").read_bytes())
        assert [one.mean(channel) for channel in (0, 1)] == means
    assert "name the channels in the study" in make("2").output
    assert "or their names as in data.channels, such as t1,flair" in make("2,3").output


def test_nyul_landmarks_of_the_federation(study_file):
    parts = prints_of(read_study(study_file))
    landmarks = propose_settings(merge(parts.values()), normalise="nyul")["normalise"]["landmarks"]
    assert landmarks[0] == -1
    assert landmarks[-1] == 1
    # The federation's landmark is the mean of its cases', whichever hospital they are in.
    both = [x.nyul()[5] for x in parts.values()]
    assert landmarks[5] == pytest.approx(np.mean(both), abs=1e-5)


TABLE = """\
name: table
seed: 1
task: {kind: tabular, classes: ["no", "yes"]}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [a, b, c], target: y, standardise: combat, plan: {min_patients: 5}}
train: {rounds: 1, epochs: 1, batch: 8}
evaluation: {draws: 20, smallest_group: 1}
sites: {north: north.csv, south: south.csv}
"""


def test_a_table_is_harmonised_over_the_hospitals(tmp_path):
    rng = np.random.default_rng(0)
    for site, shift in (("north", 0.0), ("south", 30.0)):
        values = rng.normal([1, 20, 300], [1, 2, 30], (60, 3)) + shift
        rows = [
            f"{site}{i},{','.join(f'{v:.5f}' for v in row)},{int(row[0] > 1 + shift)},"
            f"{'test' if i % 5 == 0 else 'train'}"
            for i, row in enumerate(values)
        ]
        (tmp_path / f"{site}.csv").write_text("\n".join(["patient,a,b,c,y,split", *rows]) + "\n")
    (tmp_path / "study.yaml").write_text(TABLE)
    done = run.train(tmp_path / "study.yaml", out=tmp_path / "run")
    data = read_study(done.study).data
    assert data.centre["a"] == pytest.approx(1 + 15, abs=0.4)
    assert data.scale["b"] == pytest.approx(2, abs=0.4)  # within hospitals; over both it is 15
    for site in ("north", "south"):
        features = hospital_of(read_study(done.study), site, str(tmp_path / f"{site}.csv")).data.dataset(
            "train"
        )
        values = features.features.numpy()
        assert np.abs(values.mean(axis=0)).max() < 0.2
        assert np.abs(values.std(axis=0) - 1).max() < 0.2


def test_an_image_of_another_spacing_shifts_the_plan(study_file, tmp_path):
    for path in (tmp_path / "south").glob("*.nii.gz"):
        saved = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(saved.dataobj), np.diag([1.0, 1.0, 1.0, 1.0])), path)
    parts = prints_of(read_study(study_file))
    assert propose_settings(merge(parts.values()))["spacing_mm"][0] == 1.0
    assert propose_settings(parts["north"])["spacing_mm"][0] == 2.0


TABLE_STUDY = """\
name: fused
task: {kind: classify, classes: [benign, malignant]}
network: {kind: resnet, width: 4}
data:
  kind: images
  spatial_dims: 2
  spacing_mm: fit
  patch: [16, 16]
  table: {features: [age], standardise: fixed, plan: {min_patients: 2}}
train: {rounds: 1}
sites: {north: north, south: south}
"""
AGES = {"north": (40, 50, 60, 999), "south": (10, 20, 30, 999)}


@pytest.fixture
def fused(tmp_path, monkeypatch):
    """Two hospitals of three training patients with an age, and one in test, whose age counts for nothing."""
    for site, ages in AGES.items():
        (tmp_path / site).mkdir()
        rows = ["case,patient,image,target,split,age"]
        for number, age in enumerate(ages):
            pixels = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(tmp_path / site / f"{number}.png")
            rows.append(
                f"{number},{number},{number}.png,{number % 2},{'test' if age == 999 else 'train'},{age}"
            )
        (tmp_path / site / "cases.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return parse_study(TABLE_STUDY)


def test_a_table_beside_images_is_scaled_by_the_means_of_all_hospitals(fused, tmp_path):
    assert needs_plan(fused)
    data = {site: hospital_of(fused, site, site).data for site in fused.sites}
    files, audit = PlanFiles(tmp_path / "sum.json", tmp_path / "t.json"), run.AuditLog(tmp_path / "audit")
    planned = plan_study(fused, data, files, audit, lambda line: None)
    assert not needs_plan(planned)
    # By hand: 40 to 60 and 10 to 30 have the mean 35, and within each hospital the variance 200 / 3.
    assert planned.data.table.centre == {"age": pytest.approx(35)}
    assert planned.data.table.scale == {"age": pytest.approx((200 / 3) ** 0.5)}
    assert [entry["what"] for entry in entries(tmp_path / "audit")] == ["table sums"] * 2
    assert not files.merged.exists()
    north = hospital_of(planned, "north", "north").data
    first = north.dataset("train")[0]["tabular"]
    assert first.tolist() == pytest.approx([(40 - 35) / (200 / 3) ** 0.5])
    # A resumed run asks nobody.
    assert plan_study(fused, {}, files, audit, lambda line: None) == planned


@pytest.mark.parametrize("given", ["fused", "study_file"])
def test_the_sum_of_statistics_plans_the_same_as_one_process(given, request, tmp_path):
    result = request.getfixturevalue(given)
    study = read_study(result) if given == "study_file" else result
    # In one process the plan's min_patients decides alone; across machines the higher of both does.
    evaluation = msgspec.structs.replace(study.evaluation, smallest_group=1)
    study = msgspec.structs.replace(study, evaluation=evaluation)
    data = {site: hospital_of(study, site, where).data for site, where in study.sites.items()}
    files = PlanFiles(tmp_path / "sum.json", tmp_path / "table.json")
    here = plan_study(study, data, files, run.AuditLog(None), lambda line: None)
    statistics = describe_here(study, data, run.AuditLog(None))
    assert plan_from(study, statistics.total) == here
    assert not needs_plan(here)


def test_a_plan_of_columns_needs_a_fixed_scale():
    with pytest.raises(
        StudyError, match=r"data\.table: plan computes centre and scale for standardise: fixed"
    ):
        parse_study(TABLE_STUDY.replace("standardise: fixed, ", ""))
