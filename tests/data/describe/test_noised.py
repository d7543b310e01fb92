"""What is counted under noise: each patient adds at most one to each block, and what is shown of it."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest

from medfed.data.datamodule import SiteDataModule
from medfed.data.describe.noised import count_once, noised_blocks, shown, squared_sensitivity
from medfed.data.describe.scope import Scope, blocks_of, volume_bin
from medfed.data.describe.table_one import table_one
from medfed.data.settings import Images, Table

SECRET = bytes(32)
TABLE = Table(features=("age", "crp", "stage"), categorical={"stage": ("I", "II")}, target="ill")
TABLE_SCOPE = Scope(TABLE, "table", ("no", "yes"))
IMAGES_SCOPE = Scope(Images(), "segment", ("background", "cyst"), "hu")

# Patient, age, sex, CRP, stage, ill; the first has three rows, the third no age and no CRP.
ROWS = (
    ("a", 40, "F", 1.5, "I", 0, "train"),
    ("a", 71, "F", 1e6, "II", 1, "train"),
    ("a", 71, "M", "", "II", 1, "train"),
    ("b", 99, "M", -3.0, "", 1, "train"),
    ("c", "", "", "", "II", 0, "train"),
    ("d", 12, "F", 8.0, "I", 0, "train"),
)


def of_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("patient", "age", "sex", "crp", "stage", "ill", "split"))
        writer.writerows(rows)
    data = SiteDataModule.open(path, TABLE, "table", site_secret=SECRET, classes=2)
    return count_once(data, TABLE_SCOPE)


# Case, patient, side of its cyst, spacing: the first patient has two cases, the third no cyst.
CASES = (("1", "a", 4, 1.0), ("2", "a", 6, 3.0), ("3", "b", 5, 1.0), ("4", "c", 0, 1.0), ("5", "d", 1, 2.0))


def of_images(folder, cases):
    folder.mkdir()
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "patient", "image", "label", "split"))
        for case, patient, side, spacing in cases:
            label = np.zeros((8, 8, 8), np.uint8)
            label[:side, :side, :side] = 1
            for array, kind in ((label * 50.0 - 5, "image"), (label, "label")):
                image = nibabel.Nifti1Image(array.astype(np.float32), np.diag([spacing] * 3 + [1.0]))
                nibabel.save(image, folder / f"{case}-{kind}.nii.gz")
            writer.writerow((case, patient, f"{case}-image.nii.gz", f"{case}-label.nii.gz", "train"))
    data = SiteDataModule.open(folder, Images(), "segment", site_secret=SECRET, classes=2)
    return count_once(data, IMAGES_SCOPE)


def require_bounded(scope, whole, others):
    """Check that removing a patient takes at most one from each block, and nothing is added anywhere."""
    blocks = noised_blocks(scope)
    assert list(whole) == [block.name for block in blocks]
    assert [len(whole[block.name]) for block in blocks] == [block.size for block in blocks]
    for other in others:
        moved = {name: np.subtract(whole[name], other[name]) for name in whole}
        assert all(one.min() >= 0 and one.sum() <= 1 for one in moved.values())
        assert not moved["hospitals"].any()
        assert moved["patients"].tolist() == [1]
        squares = sum(float((one**2).sum()) for one in moved.values())
        assert squares <= squared_sensitivity(scope)


def test_a_patient_of_a_table_adds_at_most_one_to_each_block(tmp_path):
    whole = of_table(tmp_path / "all.csv", ROWS)
    without = [
        of_table(tmp_path / f"{patient}.csv", [row for row in ROWS if row[0] != patient])
        for patient in "abcd"
    ]
    require_bounded(TABLE_SCOPE, whole, without)
    assert whole["patients"] == [4]
    assert whole["known.1"] == [3, 1]
    assert whole["age.known"] == [3, 1]
    assert sum(whole["age"]) == 3
    assert whole["age"][17] == 1  # 85 years and more
    # Not known: age (1), sex, scanner, class, two columns and one of words, age's histogram, and patients.
    assert squared_sensitivity(TABLE_SCOPE) == 9


def test_a_patient_with_images_adds_at_most_one_to_each_block(tmp_path):
    whole = of_images(tmp_path / "all", CASES)
    without = [
        of_images(tmp_path / patient, [case for case in CASES if case[1] != patient]) for patient in "abcd"
    ]
    require_bounded(IMAGES_SCOPE, whole, without)
    assert whole["structure.0"] == [3, 1]
    assert sum(whole["spacing.x"]) == sum(whole["extent.z"]) == 4
    # b's cyst is 5^3 voxels of 1 mm^3: four bins are one.
    assert whole["volume.0"][volume_bin(0.125) // 4] >= 1
    assert sum(whole["volume.0"]) == 3
    # Nine of geometry, structure and volume, age twice, sex, scanner, patients.
    assert squared_sensitivity(IMAGES_SCOPE) == 16


def test_the_number_of_numbers_follows_from_the_study_alone():
    # 3201 bins of lengths in 80s, 161 of volumes in 4s: five per decade.
    sizes = {block.name: block.size for block in noised_blocks(IMAGES_SCOPE)}
    assert (sizes["spacing.x"], sizes["volume.0"], sizes["age"], sizes["sex"]) == (41, 41, 18, 4)
    assert not {"cases", "age.sums", "age.counted", "intensity.0", "columns.total"} & sizes.keys()


def test_nobody_trains_and_a_hospital_with_few_patients_answers_as_any_other(tmp_path):
    few = of_table(tmp_path / "few.csv", [(*row[:6], "test") for row in ROWS[:3]] + [ROWS[3]])
    assert (few["hospitals"], few["patients"]) == ([1, 1], [1])


def test_negative_counts_are_0_and_small_groups_are_withheld_after_the_noise():
    values = {block.name: [0] * block.size for block in noised_blocks(TABLE_SCOPE)}
    values |= {"hospitals": [3, 3], "patients": [95], "sex": [60, -4, 3, 31], "age": [0, 14, 40, *[-2] * 15]}
    values["known.1"] = [90, -7]
    result = shown(TABLE_SCOPE, values, least=5, deviation=5.0)
    assert {block.name: block.size for block in blocks_of(TABLE_SCOPE)} == {
        name: len(numbers) for name, numbers in result.items()
    }
    # Of the 3 others the next smallest group is withheld, too, and both are in the last number.
    assert result["sex"] == [60, 0, 0, 0, 34]
    # 14 is below three deviations.
    assert result["age"][:3] == [0, 0, 40]
    lines = {(one.variable, one.level): one.overall for one in table_one(TABLE_SCOPE, result, {})}
    assert lines["patients (training)", ""] == "95"
    assert lines["cases (training)", ""] == lines["crp", "mean (SD)"] == "-"
    assert lines["crp", "missing"] == "0"
    assert lines["age, years", "median [IQR], bins of 5"] == "12.5 [12.5, 12.5]"


def test_a_coarse_bin_is_shown_in_its_middle():
    values = {block.name: [0] * block.size for block in noised_blocks(IMAGES_SCOPE)}
    values |= {"hospitals": [1, 1], "spacing.x": [0] * 15 + [100] + [0] * 25}
    result = shown(IMAGES_SCOPE, values, least=5, deviation=1.0)
    assert [place for place, count in enumerate(result["spacing.x"]) if count] == [15 * 80 + 40]
    lines = {(one.variable, one.level): one.overall for one in table_one(IMAGES_SCOPE, result, {})}
    # 10^(1240 / 400 - 3) mm.
    assert lines["spacing x, mm", "median [IQR]"] == "1.26 [1.26, 1.26]"


@pytest.mark.parametrize("scope", [TABLE_SCOPE, IMAGES_SCOPE])
def test_what_leaves_may_be_negative_and_a_flag_may_not(scope):
    assert {block.of for block in noised_blocks(scope)[1:]} == {"sums"}
    assert noised_blocks(scope)[0].of == "flags"
