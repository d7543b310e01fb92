"""What hospitals count, against numpy over all of their patients together."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest

from medfed.data.datamodule import SiteDataModule
from medfed.data.describe.blocks import decode, encode
from medfed.data.describe.gather import gather
from medfed.data.describe.scope import Scope, blocks_of
from medfed.data.describe.sums import fingerprint_of, table_sums_of
from medfed.data.describe.table_one import table_one
from medfed.data.fingerprint import fingerprint, merge
from medfed.data.harmonise import centre_and_scale
from medfed.data.settings import Images, Table

SECRET = bytes(32)


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("patient", "age", "sex", "crp", "stage", "ill", "split"))
        writer.writerows(rows)


def patients(name: str, count: int, seed: int):
    """Return rows of made-up patients; every fifth has no CRP."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        crp = "" if number % 5 == 4 else f"{generator.normal(1e6, 3):.3f}"
        age, stage = int(generator.integers(30, 80)), ("I", "II")[int(generator.integers(2))]
        yield (f"{name}{number}", age, "FM"[number % 2], crp, stage, number % 3 % 2, "train")


TABLE = Table(features=("age", "crp", "stage"), categorical={"stage": ("I", "II")}, target="ill")
TABLE_SCOPE = Scope(TABLE, "table", ("no", "yes"))


@pytest.fixture
def tables(tmp_path):
    rows = {name: list(patients(name, count, count)) for name, count in (("a", 40), ("b", 25))}
    result = {}
    for name, listed in rows.items():
        write_table(tmp_path / f"{name}.csv", listed)
        result[name] = SiteDataModule.open(
            tmp_path / f"{name}.csv", TABLE, "table", site_secret=SECRET, classes=2
        )
    return rows, result


def summed(scope, parts):
    blocks = blocks_of(scope)
    return decode(blocks, sum(encode(blocks, one) for one in parts), len(parts))


def test_the_sum_of_tables_is_that_of_all_rows_together(tables):
    rows, result = tables
    values = summed(TABLE_SCOPE, [gather(one, TABLE_SCOPE, 2) for one in result.values()])
    pooled = [row for listed in rows.values() for row in listed]
    ages = np.array([row[1] for row in pooled], float)
    crp = np.array([float(row[3]) for row in pooled if row[3]])
    lines = {(line.variable, line.level): line.overall for line in table_one(TABLE_SCOPE, values, {})}
    assert values["patients"] == values["cases"] == [65]
    assert lines["age, years", "mean (SD)"] == f"{ages.mean():.4g} ({ages.std(ddof=1):.4g})"
    assert lines["age", "mean (SD)"] == lines["age, years", "mean (SD)"]
    # A spread of 3 about a million: whole numbers lose no digit, as floats of squares would.
    assert lines["crp", "mean (SD)"] == f"{crp.mean():.4g} ({crp.std(ddof=1):.4g})"
    assert values["columns.counted"] == [65, 52]
    assert lines["crp", "missing"] == "13"
    assert values["words.0"][:2] == [sum(row[4] == word for row in pooled) for word in ("I", "II")]
    assert values["sex"] == [33, 32, 0, 0, 0]
    assert values["target"][:2] == [sum(row[5] == ill for row in pooled) for ill in (0, 1)]
    assert lines["class", "yes"] == f"{values['target'][1]} ({values['target'][1] / 65:.1%})"


def test_the_plan_of_a_table_is_the_pooled_mean_and_the_deviation_within_hospitals(tables):
    rows, result = tables
    values = summed(TABLE_SCOPE, [gather(one, TABLE_SCOPE, 2) for one in result.values()])
    centre, scale = centre_and_scale(table_sums_of(TABLE_SCOPE, values))
    crp = [np.array([float(row[3]) for row in listed if row[3]]) for listed in rows.values()]
    within = sum(((one - one.mean()) ** 2).sum() for one in crp) / sum(map(len, crp))
    assert centre["crp"] == pytest.approx(np.concatenate(crp).mean(), rel=1e-12)
    assert scale["crp"] == pytest.approx(within**0.5, rel=1e-6)


def test_few_missing_values_cannot_be_told_by_a_difference(tmp_path):
    listed = [
        [*row[:3], "" if number < 2 else "5", *row[4:]] for number, row in enumerate(patients("c", 30, 3))
    ]
    write_table(tmp_path / "c.csv", listed)
    data = SiteDataModule.open(tmp_path / "c.csv", TABLE, "table", site_secret=SECRET, classes=2)
    values = gather(data, TABLE_SCOPE, 10)
    # Two have no CRP: eight others are left out of its sums, and nobody tells that it is two.
    assert values["columns.counted"] == [30, 20]
    assert values["known.1"] == [0, 0, 30]
    assert values["columns.total"][1] == 100 << 20


def test_a_hospital_with_few_patients_answers_that_it_has_few(tables):
    _, result = tables
    assert gather(result["b"], TABLE_SCOPE, 26) == {"hospitals": [1, 0]}
    blocks = blocks_of(TABLE_SCOPE)
    vector = encode(blocks, gather(result["b"], TABLE_SCOPE, 26))
    assert (vector.sum(), vector[0]) == (1, 1)


def write_images(folder, sides, spacing):
    """Write patients with a box of `side` voxels, an intensity of `side`, or no structure for 0."""
    folder.mkdir()
    rows = []
    for number, side in enumerate(sides):
        label = np.zeros((16, 16, 16), np.uint8)
        label[:side, :side, :side] = 1
        image = np.full(label.shape, -5, np.float32)
        image[label > 0] = side
        for array, kind in ((image, "image"), (label, "label")):
            affine = np.diag([*spacing, 1.0])
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{number}-{kind}.nii.gz")
        rows.append((number, f"P{number}", f"{number}-image.nii.gz", f"{number}-label.nii.gz", "train"))
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "patient", "image", "label", "split"))
        writer.writerows(rows)
    return folder


def test_the_sum_of_images_is_the_merged_fingerprint_and_the_volumes_are_those_of_the_boxes(tmp_path):
    scope = Scope(Images(), "segment", ("background", "cyst"), "hu")
    made = {"a": ((4, 4, 4, 0, 0), (1, 1, 2)), "b": ((5, 5, 5, 5, 5), (1, 1, 1))}
    result = [
        SiteDataModule.open(
            write_images(tmp_path / name, *given), Images(), "segment", site_secret=SECRET, classes=2
        )
        for name, given in made.items()
    ]
    values = summed(scope, [gather(one, scope, 2) for one in result])
    prints = [fingerprint(one.index, grid="hu", classes=2, min_count=2) for one in result]
    expected = merge(prints)
    merged = fingerprint_of(scope, values)
    for name in ("spacing", "size", "extent", "intensity", "total", "squares", "counted", "landmarks"):
        assert getattr(merged, name) == getattr(expected, name), name
    inside = np.concatenate([np.full(side**3, side) for sides, _ in made.values() for side in sides])
    assert merged.mean() == pytest.approx(inside.mean())
    assert merged.sd() == pytest.approx(inside.std(), rel=1e-3)
    assert values["structure.0"] == [8, 2, 0]
    lines = {(line.variable, line.level): line.overall for line in table_one(scope, values, {})}
    # 4^3 voxels of 2 mm^3 are 0.128 ml, 5^3 of 1 mm^3 are 0.125 ml: both in the bin about 0.126 ml.
    assert lines["volume of cyst, ml", "median [IQR]"] == "0.126 [0.126, 0.126]"
    assert lines["spacing z, mm", "median [IQR]"] == "1 [1, 2]"


def test_a_structure_that_all_but_few_have_is_withheld(tmp_path):
    scope = Scope(Images(), "segment", ("background", "cyst"), "hu")
    folder = write_images(tmp_path / "c", (4, 4, 4, 4, 4, 4, 0), (1, 1, 1))
    data = SiteDataModule.open(folder, Images(), "segment", site_secret=SECRET, classes=2)
    values = gather(data, scope, 3)
    assert values["structure.0"] == [0, 0, 7]
    # The one without it is hidden among three whose volume is not counted either.
    assert sum(values["volume.0"]) == 4
