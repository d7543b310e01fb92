"""`medfed predict`: masks on the images' own grid, DICOM SEG that refers to its series, and no name
in a NIfTI file.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from hospitals import make_hospital

from medfed.data.datamodule import SiteDataModule
from medfed.data.own_data import OwnData
from medfed.data.read import read, read_label
from medfed.data.splits import simulated_secret
from medfed.errors import DataError, RunError
from medfed.pipeline import predict
from medfed.pipeline.create_run import create_run
from medfed.pipeline.factory import module_of
from medfed.pipeline.measure_models import saved_models
from medfed.pipeline.own_choices import OwnChoices
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study
from medfed.wire.weights import load, weights_of

CONFIGS = Path(__file__).parents[2] / "configs"
SAMPLES = Path(__file__).parents[2] / "sample_data"


def untrained_run(folder: Path, config: Path, overrides: tuple[str, ...] = ()) -> RunFolder:
    """A run whose federated model is the untrained one: what it predicts is arbitrary, and
    the same every time.
    """
    study = read_study(config, overrides)
    result = RunFolder(folder)
    create_run(result, study, {})
    weights = weights_of(module_of(study))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator) for name, value in weights.items()
    }
    save_checkpoint(result.checkpoint("federated"), weights, 1)
    return result


def hospital_of(folder: Path, target: Path, cases: int) -> Path:
    """The first cases of a sample hospital."""
    target.mkdir(parents=True)
    for name in ("images", "labels"):
        (target / name).symlink_to(folder / name)
    lines = (folder / "cases.csv").read_text().splitlines()[: cases + 1]
    (target / "cases.csv").write_text("\n".join(lines) + "\n")
    return target


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    done = untrained_run(folder / "run", CONFIGS / "quickstart.yaml")
    data = hospital_of(SAMPLES / "north", folder / "north", 2)
    return done, data, predict.predict(done, data, folder / "out", name="ours")


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / predict.TABLE).open()))


def test_masks_lie_on_the_images_grid_and_are_what_the_network_says(dicom):
    """By another path: Lightning's validation data, the module by hand, and back to the file's grid."""
    done, data, out = dicom
    study = read_study(done.study)
    site = SiteDataModule.open(
        data, study.data, "segment", site_secret=simulated_secret(study.seed, "ours"), classes=2
    )
    module = module_of(study)
    load(module, saved_models(done)["federated"])
    module.eval()
    seen = 0
    for split in ("train", "val", "test"):
        dataset = site.dataset(split)
        for number, case in enumerate(dataset.cases):
            with torch.inference_mode():
                p = module(dataset[number]["image"][None]).softmax(dim=1)[0].numpy()
            expected = site.restored(p, case, nearest=False).argmax(axis=0)
            mask = nibabel.load(out / f"{case.token}.nii.gz")
            assert np.array_equal(np.asarray(mask.dataobj), expected)
            assert np.allclose(mask.affine, site.original(case)[0].affine_ras, atol=1e-4)
            assert 0 < expected.sum() < expected.size
            seen += 1
    assert seen == 2


def test_the_dicom_seg_refers_to_its_series_and_reads_back_as_the_mask(dicom):
    _, data, out = dicom
    for line in table(out):
        assert line["note"] == ""
        seg = pydicom.dcmread(out / line["dicom"])
        keys = {row["token"]: row["case"] for row in csv.DictReader((out / predict.KEY).open())}
        slices = [pydicom.dcmread(p) for p in sorted((data / "images" / keys[line["case"]]).rglob("*.dcm"))]
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == slices[0].SeriesInstanceUID
        assert seg.StudyInstanceUID == slices[0].StudyInstanceUID
        referred = {
            item.ReferencedSOPInstanceUID
            for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        }
        assert referred == {one.SOPInstanceUID for one in slices}
        assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
        image = read(data / "images" / keys[line["case"]])[0]
        back = read_label(out / line["dicom"], image, 2).array[0]
        assert np.array_equal(back, np.asarray(nibabel.load(out / line["file"]).dataobj))


def test_volumes_are_the_masks(dicom):
    _, _, out = dicom
    for line in table(out):
        mask = nibabel.load(out / line["file"])
        voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert float(line["lesion ml"]) == pytest.approx(np.asarray(mask.dataobj).sum() * voxel_ml, abs=1e-3)


def test_names_and_headers_of_nifti_files_say_nothing_of_the_patient(tmp_path):
    """Labels are not needed, and the mark on the hospital's files, headers and patients is nowhere
    but in the key.
    """
    mark = "MEIER"
    data = make_hospital(tmp_path / "west", 2, mark=mark)
    lines = (data / "cases.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    (data / "cases.csv").write_text("\n".join(",".join([*c[:3], *c[4:]]) for c in cells) + "\n")
    for label in data.glob("*-label.nii.gz"):
        label.unlink()
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\ntask: {kind: segment, classes: [background, lesion]}\n"
        "network: {kind: unet, channels: [4, 8], residual_units: 0}\n"
        "data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}\n"
        "train: {rounds: 1}\nsites: {north: north}\n"
    )
    done = untrained_run(tmp_path / "run", tmp_path / "tiny.yaml")
    out = predict.predict(done, data, tmp_path / "out")
    files = sorted(out.iterdir())
    assert len([file for file in files if file.name.endswith(".nii.gz")]) == 2
    for file in files:
        assert mark not in file.name
        raw = file.read_bytes()
        inside = gzip.decompress(raw) if file.name.endswith(".gz") else raw
        assert (mark.encode() in inside) == (file.name == predict.KEY)


def test_a_tables_patients_get_probabilities_that_sum_to_one(tmp_path):
    done = untrained_run(tmp_path / "run", CONFIGS / "tabular.yaml")
    out = predict.predict(done, SAMPLES / "tabular" / "university.csv", tmp_path / "out")
    lines = table(out)
    assert len(lines) > 20
    for line in lines:
        assert float(line["probability of healthy"]) + float(line["probability of disease"]) == pytest.approx(
            1
        )


def test_what_cannot_be_predicted_is_refused(dicom, tmp_path):
    done, data, out = dicom
    with pytest.raises(RunError, match="no model 'nobody'; there are federated"):
        predict.predict(done, data, tmp_path / "other", model="nobody")
    with pytest.raises(RunError, match="is not empty; give another folder"):
        predict.predict(done, data, out)


def new_patients(folder: Path, rows: int) -> Path:
    """The first rows of a sample table without the column that the study predicts."""
    with (SAMPLES / "tabular" / "university.csv").open() as file:
        lines = list(csv.DictReader(file))[:rows]
    path = folder / f"new{rows}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in lines[0] if name != "disease"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_a_table_without_its_outcome_gets_the_predictions_of_the_table_with_it(tmp_path):
    done = untrained_run(tmp_path / "run", CONFIGS / "tabular.yaml")
    whole = SAMPLES / "tabular" / "university.csv"
    rows = len(whole.read_text().splitlines()) - 1
    with_outcome = predict.predict(done, whole, tmp_path / "with")
    # A site file's heading for the outcome, which the new table lacks like the column itself.
    own = OwnChoices(data=OwnData(headings={"disease": "diagnosis"}))
    without = predict.predict(done, new_patients(tmp_path, rows), tmp_path / "without", own=own)
    assert table(with_outcome) == table(without)
    assert len(table(without)) == rows


def test_a_row_that_the_study_drops_is_listed_and_not_predicted(tmp_path):
    overrides = ("data.missing=drop", "data.standardise=none", "data.features=[age,cholesterol,sex]")
    categorical = ("data.categorical={sex: [F, M]}",)
    done = untrained_run(tmp_path / "run", CONFIGS / "tabular.yaml", overrides + categorical)
    path = new_patients(tmp_path, 12)
    heading, first, *others = path.read_text().splitlines()
    column = heading.split(",").index("age")
    cells = first.split(",")
    cells[column] = ""
    path.write_text("\n".join([heading, ",".join(cells), *others]) + "\n")
    written = list(csv.DictReader(path.open()))
    empty = {row["patient"] for row in written if not row["age"] or not row["cholesterol"]}
    assert cells[heading.split(",").index("patient")] in empty
    out = predict.predict(done, path, tmp_path / "out")
    patients = {line["token"]: line["patient"] for line in csv.DictReader((out / predict.KEY).open())}
    assert sorted(patients.values()) == sorted(row["patient"] for row in written)
    for line in table(out):
        note = "not predicted: an empty number in the table (data.missing)"
        assert (line["note"] == note) == (patients[line["case"]] in empty)
        assert (line["probability of disease"] == "") == (patients[line["case"]] in empty)


def test_few_new_patients_are_not_scaled_by_themselves(tmp_path):
    by_site = ("data.standardise=site", "data.plan=given")
    done = untrained_run(tmp_path / "run", CONFIGS / "tabular.yaml", by_site)
    with pytest.raises(DataError, match=r"site 'evaluated': .*fewer than 10 of them; add the new rows"):
        predict.predict(done, new_patients(tmp_path, 1), tmp_path / "one")
    # Where numbers are not scaled, who else is in the table does not matter.
    alone = untrained_run(tmp_path / "alone", CONFIGS / "tabular.yaml", ("data.standardise=none",))
    (line,) = table(predict.predict(alone, new_patients(tmp_path, 1), tmp_path / "two"))
    assert line in table(predict.predict(alone, new_patients(tmp_path, 12), tmp_path / "three"))
