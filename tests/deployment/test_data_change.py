"""A hospital that is started again with other data says so, and writes it down."""

from __future__ import annotations

import shutil

import nibabel
import numpy as np
import pytest
from hospitals import make_hospital, write_study

from medfed.data.settings import Unreadable
from medfed.deployment.data_change import FILE, _difference, record_data
from medfed.errors import RunError
from medfed.pipeline.factory import hospital_of, screen_hospital
from medfed.study.reading import read_study

SECRET = b"s" * 32


@pytest.fixture
def place(tmp_path):
    make_hospital(tmp_path / "north")
    write_study(tmp_path)
    (tmp_path / "state").mkdir()
    return tmp_path


def opened(place):
    """Return the hospital as a site reads it when it starts."""
    hospital = hospital_of(read_study(place / "tiny.yaml"), "north", str(place / "north"), SECRET)
    screen_hospital(hospital, Unreadable(), prepare=False)
    return hospital


def changed(path) -> None:
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[3, 3, 3] = 1 - voxels[3, 3, 3]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), path)


def test_the_same_data_say_nothing_and_others_are_counted(place):
    assert record_data(place / "state", opened(place), "day 1")[1] == ""
    assert record_data(place / "state", opened(place), "day 2")[1] == ""
    data = place / "north"
    changed(data / "north0-label.nii.gz")
    changed(data / "north1-image.nii.gz")
    lines = (data / "cases.csv").read_text().splitlines()
    lines[3] = lines[3].replace(",train,", ",val,")  # north2
    lines[4] = lines[4].replace("north3,", "north9,", 1)  # another id: one is gone, one is new
    (data / "cases.csv").write_text("\n".join(lines) + "\n")
    state, sentence = record_data(place / "state", opened(place), "day 3")
    assert sentence == (
        "its data are not those with which it was here before (6 cases): 1 new, 1 gone, "
        "3 with another image, row, label or split"
    )
    assert state.changes == (f"day 3: {sentence}",)
    # Told once, and kept for the report of a later start.
    assert record_data(place / "state", opened(place), "day 4") == (state, "")


def test_what_is_kept_names_no_case_and_is_no_digest_that_somebody_could_try_out(place):
    record_data(place / "state", opened(place), "day 1")
    text = (place / "state" / FILE).read_text()
    assert "north0" not in text
    shutil.rmtree(place / "state")
    (place / "state").mkdir()
    hospital = hospital_of(read_study(place / "tiny.yaml"), "north", str(place / "north"), b"t" * 32)
    screen_hospital(hospital, Unreadable(), prepare=False)
    other, _ = record_data(place / "state", hospital, "day 1")
    assert not any(digest in text for digest in other.cases.values())


def test_a_damaged_record_is_no_traceback(place):
    (place / "state" / FILE).write_text("{")
    with pytest.raises(RunError, match=r"data\.json, by which changed data are noticed, is damaged"):
        record_data(place / "state", opened(place), "day 1")


def test_a_row_that_goes_from_a_table_moves_the_others_and_is_alone_gone():
    """Patients a, b, c in lines 2, 3, 4; a's row is deleted, c's is corrected and d is new."""
    before = {"a/2": "A", "b/3": "B", "c/4": "C", "e/5": "B"}
    now = {"b/2": "B", "c/3": "C2", "e/4": "B", "d/5": "D"}
    told = "its data are not those with which it was here before (4 cases): 2 new, 2 gone"
    assert _difference(before, now, rows=True) == told
    moved = {"b/2": "B", "c/3": "C", "e/4": "B"}
    assert _difference(before, moved, rows=True).endswith("(4 cases): 1 gone")
    assert _difference(before, moved).endswith("(4 cases): 3 new, 4 gone")
