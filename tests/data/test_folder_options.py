"""`medfed new --set`: folders that can only be read once somebody says how."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from medfed.cli.commands import main
from medfed.data.layouts import layout_of, plain_layout
from medfed.data.settings import Images
from medfed.errors import DataError, StudyError
from medfed.pipeline.drafting import draft_study, folder_options
from medfed.study.reading import read_study

# Twice the spacing, over the same place as the image's grid.
FINE, COARSE = np.diag([1.0, 1, 1, 1]), np.diag([2.0, 2, 2, 1])
COARSE[:3, 3] = 0.5


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def labels_on_another_grid(folder: Path) -> Path:
    """Write images of 8 voxels a side, and labels with one structure on a grid of half the size."""
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, 1, 1] = 1
    for number in range(4):
        image = np.random.default_rng(number).normal(size=(8, 8, 8)).astype(np.float32)
        write(folder / "images" / f"p{number}.nii.gz", image, FINE)
        write(folder / "labels" / f"p{number}.nii.gz", mask, COARSE)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_refusal_names_the_cure_and_new_takes_it(tmp_path: Path) -> None:
    folder = labels_on_another_grid(tmp_path / "north")
    with pytest.raises(DataError, match=r"none of its 4 labels can be used.*resample_labels.*by --set"):
        draft_study("s", {"north": folder}, {})
    study = tmp_path / "s.yaml"
    code, output = run("new", study, folder, "--set", "data.resample_labels=true")
    assert code == 0, output
    settings = read_study(study).data
    assert isinstance(settings, Images)
    assert settings.resample_labels
    code, output = run("check", folder, "--study", study)
    assert code == 0, output
    assert "4 of 4 cases: label resampled from another grid onto the image" in output


def test_keys_of_reading_are_written_into_the_study() -> None:
    options = folder_options(None, ["data.read.uneven=resample", "data.read.pet=suv"])
    assert (options.read.uneven, options.read.pet, options.read.overlap) == ("resample", "suv", "refuse")
    assert options.given == (("read", {"uneven": "resample", "pet": "suv"}),)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.rounds=3", "'train' does not decide how a folder is read"),
        ("data.cache=disk", r"data\.cache does not decide how a folder is read; there are data\.read, "),
        ("data.read.uneven=guess", r"--set: data: .*'guess'"),
        ("data.read.unevn=resample", r"--set: data: .*unevn"),
        ("data.read", "expected key=value"),
        ("data=resample", "expected a key below it"),
        ("data.read=resample", r"--set: data: Expected `object`"),
    ],
)
def test_another_key_or_value_is_refused(override: str, reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        folder_options(None, [override])


def test_a_table_is_not_read_as_images(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("age,disease\n" + "".join(f"{40 + n},{n % 2}\n" for n in range(8)))
    code, output = run("new", tmp_path / "s.yaml", table, "--set", "data.read.pet=suv")
    assert code == 1
    assert "--set says how images are read, and tables are none" in output


def test_a_drafted_layout_holds_only_what_was_said() -> None:
    series = [{"name": "t1", "weighting": "t1", "several": "most_slices"}]
    plain = plain_layout(layout_of({"kind": "dicom_tree", "series": series}))
    assert plain == {"kind": "dicom_tree", "series": series}
