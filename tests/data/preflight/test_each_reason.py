"""Each reason for which one case is left out: `medfed check` and training leave out the same case for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfed.data.class_names import ClassNames
from medfed.data.datamodule import SiteDataModule
from medfed.data.preflight.preflight import check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.refusals import REASONS
from medfed.data.settings import Unreadable

from ... import hard_series as hs
from ..hospital_folder import MARK, SECRET, image_of, label_of, row, write_nifti
from ..itk_files import write_meta
from .broken_images import AGES, GOOD, HEADING, TABLE, BrokenImages, beside, broken, cases, each, nifti

SHAPE = (6, 5, 4)  # of the good folder's images
OTHER = (6, 5, 3)
DECATHLON = each(
    nifti(*(f"imagesTr/{name}.nii.gz" for name in "abc")),
    nifti(*(f"labelsTr/{name}.nii.gz" for name in "abc"), label=True),
    lambda folder: (folder / "dataset.json").write_text('{"labels": {"0": "background", "1": "lesion"}}'),
)
TWO_CHANNELS = cases(HEADING, *(row(n, image=f"{MARK}_{n}.nii.gz|{MARK}_{n}.nii.gz") for n in "ac"),
                     row("b", image=f"{MARK}_b.nii.gz|other.nii.gz"))  # fmt: skip


def then(change: Callable[[Path], object], first: Callable[[Path], object] = GOOD) -> BrokenImages:
    return broken(each(first, change))


def with_image(path: str, write: Callable[[Path], object]) -> BrokenImages:
    """A good folder whose case b has another image."""
    rows = cases(HEADING, row("a"), row("b", image=path), row("c"))
    return broken(each(rows, write))


def two_series(folder: Path) -> None:
    for _ in range(2):
        hs.write_series(folder / "b", hs.Series())


def segmented_for_another(folder: Path) -> None:
    for name in "abc":
        series = hs.Series()
        hs.write_series(folder / name, series)
        label = hs.segmentation(series, [(1, 0, hs.blob(series)[0])], titles=["lesion"])
        label.PatientID = "SOMEBODY ELSE" if name == "b" else label.PatientID
        hs.write(label, folder / f"{name}.dcm")


def flat(folder: Path) -> None:
    write_meta(folder / "b.mha", np.zeros(SHAPE, np.float32), np.eye(4), change={"ElementSpacing": "0 1 1"})


LEFT_OUT: dict[str, BrokenImages] = {
    "image missing": then(lambda folder: image_of(folder).unlink()),
    "label missing": then(lambda folder: label_of(folder).unlink()),
    "empty file": then(lambda folder: image_of(folder).write_bytes(b"")),
    "several files for one image": then(nifti("imagesTr/b.nii"), DECATHLON),
    "several labels": then(nifti("labelsTr/b.nii", label=True), DECATHLON),
    "impossible geometry": with_image("b.mha", flat),
    "several volumes": with_image("b", two_series),
    "channels on different grids": broken(each(TWO_CHANNELS, nifti("other.nii.gz", shape=OTHER)), channels=2),
    "other number of channels": then(nifti(f"{MARK}_b.nii.gz", shape=(*SHAPE, 2))),
    "label on another grid": then(nifti(f"{MARK}_b_label.nii.gz", shape=OTHER, label=True)),
    "label without classes of the study": then(
        lambda folder: write_nifti(label_of(folder), np.full(SHAPE, 9, np.uint8))
    ),
    "label of another patient": broken(
        each(cases(HEADING, *(row(n, image=n, label=f"{n}.dcm") for n in "abc")), segmented_for_another)
    ),
    "label unreadable": then(lambda folder: label_of(folder).write_bytes(b"x" * 99)),
    "image unreadable": then(lambda folder: image_of(folder).write_bytes(b"x" * 99)),
    "no row in the table": broken(beside("case,age", AGES[0], AGES[2]), "classify", table=TABLE),
    "several rows in the table": broken(beside("case,age", *AGES, AGES[1]), "classify", table=TABLE),
    "table row of another patient": broken(
        beside("case,patient,age", *(f"{MARK}-{n},{MARK}{p},4" for n, p in ("aa", "bx", "cc"))),
        "classify",
        table=TABLE,
    ),
    "table row unreadable": broken(
        beside("case,age", AGES[0], f"{MARK}-b,old", AGES[2]), "classify", table=TABLE
    ),
}
ELSEWHERE = {"size that the network cannot take"}  # tests/data/test_whole_images.py


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_check_and_training_leave_out_one_case_for_the_same_reason(tmp_path: Path, reason: str) -> None:
    folder, one = tmp_path / f"{MARK}_export", LEFT_OUT[reason]
    folder.mkdir()
    one.fill(folder)
    data = SiteDataModule.open(
        folder, one.settings, one.needs, site_secret=SECRET, classes=ClassNames(one.classes)
    )
    screening = data.screen()
    data.leave_out(screening, Unreadable())
    assert data.left_out == {reason: 1}
    (refused,) = screening.refused
    requirements = StudyRequirements("study", one.settings, one.needs, one.classes)
    preflight = check(folder, site_secret=SECRET, requirements=requirements, processes=1)
    assert "with 2 of 3 cases; 1 cannot be used" in preflight.verdict, preflight.problems
    told = {detail for problem in preflight.problems for _, detail in problem.cases}
    assert f"1 of 3 cases are left out, as they cannot be used: 1 {reason}" in told
    # In training's own words, which name the case; `check` names it by its row.
    words = refused.message.removeprefix(f"case {refused.case.token}: ")
    assert words in told
    assert (
        sum(preflight.usable.values())
        == sum(len(data.cases(split)) for split in ("train", "val", "test"))
        == 2
    )


def test_every_reason_has_its_case() -> None:
    assert set(LEFT_OUT) | ELSEWHERE == set(REASONS.values())
