"""The labels of a hospital are matched to a study's classes by name before anything is trained on."""

from __future__ import annotations

from pathlib import Path

import hard_series as hs
import nibabel as nib
import numpy as np
import pytest
from hard_series import Series, segmentation, structure_set, write, write_series

from medfed.data.case import Case
from medfed.data.class_names import ClassNames
from medfed.data.datamodule import SiteDataModule
from medfed.data.index import Index
from medfed.data.label_naming import different_labels, match_labels, match_targets
from medfed.data.own_notes import FOLDER
from medfed.data.read import read, read_masks
from medfed.data.refusals import LabelClassesError
from medfed.data.settings import Images
from medfed.errors import DataError, LabelError

SECRET = b"a site's secret of some length"
CLASSES = ("background", "liver", "tumour")
SETTINGS = Images(spacing_mm="native", patch=(4, 4, 4), cache="none")
# Two structures that share no voxel: (slices, rows, columns).
LIVER = np.zeros((6, 9, 11), bool)
LIVER[1:3, 1:4, 1:4] = True
TUMOUR = np.zeros((6, 9, 11), bool)
TUMOUR[3:5, 5:8, 6:9] = True


def seg_of(series: Series, structures: dict[str, np.ndarray]) -> hs.FileDataset:
    """Return a segmentation whose segments have these names, numbered in this order."""
    frames = [(n, k, mask[k]) for n, mask in enumerate(structures.values(), 1) for k in range(len(mask))]
    return segmentation(series, frames, titles=list(structures))


def patient(folder: Path, number: int, structures: dict[str, np.ndarray] | None = None) -> Case:
    """Write a series, with a segmentation of its own, and return its case."""
    series = Series(shape=(6, 9, 11))
    write_series(folder / f"p{number}" / "ct", series)
    label = None
    if structures is not None:
        label = write(seg_of(series, structures), folder / f"p{number}" / "seg.dcm")
    image = folder / f"p{number}" / "ct"
    return Case(f"p{number}", f"p{number}", f"token{number}", (image,), label=label)


def site_of(folder: Path, cases: list[Case], words: dict[str, str] | None = None) -> SiteDataModule:
    index, classes = match_labels(
        Index(folder, "test", tuple(cases)), ClassNames(CLASSES, words or {}), SECRET
    )
    return SiteDataModule(index, SETTINGS, "segment", classes=classes)


def label_of(site: SiteDataModule, number: int) -> np.ndarray:
    _, label = site.original(f"token{number}")
    assert label is not None
    return label.array[0].transpose(2, 1, 0)


def test_the_same_organ_under_another_number_is_one_class(tmp_path: Path) -> None:
    cases = [
        patient(tmp_path, 0, {"Liver": LIVER, "Tumour": TUMOUR}),
        patient(tmp_path, 1, {"TUMOUR": TUMOUR, "liver": LIVER}),
    ]
    site = site_of(tmp_path, cases)
    want = LIVER * 1 + TUMOUR * 2
    np.testing.assert_array_equal(label_of(site, 0), want)
    np.testing.assert_array_equal(label_of(site, 1), want)
    assert site.notes == ()
    assert site.index.labels_by == "names"
    assert not (tmp_path / ".medfed").exists()


def test_a_structure_that_matches_no_class_is_left_out_and_listed_for_the_hospital(tmp_path: Path) -> None:
    cases = [
        patient(tmp_path, 0, {"Spleen of Mrs Miller": TUMOUR, "Liver": LIVER}),
        patient(tmp_path, 1, {"Leber": LIVER, "tumour": TUMOUR}),
    ]
    site = site_of(tmp_path, cases, {"leber": "liver"})
    np.testing.assert_array_equal(label_of(site, 0), LIVER * 1)
    np.testing.assert_array_equal(label_of(site, 1), LIVER * 1 + TUMOUR * 2)
    said = "\n".join(site.notes)
    assert "1 structures that the labels name match no class" in said
    assert "'tumour' is named in 1 of 2 labels and counts as absent in the others" in said
    assert "Miller" not in said
    assert "Leber" not in said.replace("{Leber: liver}", "")
    note = (tmp_path / ".medfed" / "cache" / FOLDER / "structures.csv").read_text()
    assert "Spleen of Mrs Miller,,,1" in note
    assert "Leber,,liver,1" in note


def test_a_label_that_names_no_class_is_no_label(tmp_path: Path) -> None:
    cases = [patient(tmp_path, 0, {"liver": LIVER}), patient(tmp_path, 1, {"kidney": LIVER})]
    site = site_of(tmp_path, cases)
    assert [case.token for case in site.cases("train")] == ["token0"]
    assert "1 labels name no class of the study" in "\n".join(site.notes)
    assert "no label here names 'tumour'" in "\n".join(site.notes)
    with pytest.raises(DataError, match=r"none of 1 labels names a class of the study \(liver, tumour\)"):
        site_of(tmp_path, cases[1:])


def test_structures_of_one_class_are_united_and_said(tmp_path: Path) -> None:
    site = site_of(tmp_path, [patient(tmp_path, 0, {"seg 1": LIVER, "Liver": TUMOUR})], {"Seg_1": "liver"})
    np.testing.assert_array_equal(label_of(site, 0), (LIVER | TUMOUR) * 1)
    assert "several structures are united as 'liver' in 1 cases" in "\n".join(site.notes)


def test_names_and_numbers_in_one_site_are_refused_until_the_site_says_what_the_numbers_mean(
    tmp_path: Path,
) -> None:
    named, numbered = patient(tmp_path, 0, {"tumour": TUMOUR, "liver": LIVER}), patient(tmp_path, 1)
    (image,) = read(numbered.image[0])
    planes = TUMOUR * 1 + LIVER * 2
    path = tmp_path / "p1" / "label.nii.gz"
    nib.Nifti1Image(hs.as_xyz(planes).astype(np.uint8), image.affine_ras).to_filename(path)
    cases = [named, Case("p1", "p1", "token1", numbered.image, label=path)]
    with pytest.raises(DataError, match=r"1 of 2 labels name .* hold numbers that nothing names .*token1"):
        site_of(tmp_path, cases)
    site = site_of(tmp_path, cases, {"1": "tumour", "2": "liver"})
    want = LIVER * 1 + TUMOUR * 2
    np.testing.assert_array_equal(label_of(site, 0), want)
    np.testing.assert_array_equal(label_of(site, 1), want)
    alone = site_of(tmp_path, cases[1:])
    np.testing.assert_array_equal(label_of(alone, 1), planes)
    assert "taken for the study's: 1 liver, 2 tumour" in "\n".join(alone.notes)
    assert alone.index.labels_by == "numbers"
    assert site.index.labels_by == "names"
    stated = site_of(tmp_path, cases[1:], {"1": "tumour", "2": "liver"})
    assert stated.index.labels_by == "stated"


def test_numbers_alone_beside_names_at_another_site_are_said_by_site() -> None:
    said = different_labels({"b": "names", "a": "names", "c": "stated", "d": "numbers", "e": ""})
    assert said.startswith(
        "the labels of a, b name their structures, and those of d hold numbers that nothing"
    )
    assert "such as classes: {1: liver}" in said
    assert different_labels({"a": "numbers", "b": "numbers", "c": "stated", "d": ""}) == ""
    assert different_labels({"a": "names", "b": "stated"}) == ""


def test_a_segmentation_without_names_is_numbers_alone(tmp_path: Path) -> None:
    cases = [patient(tmp_path, 0, {"": LIVER}), patient(tmp_path, 1, {"liver": LIVER})]
    with pytest.raises(DataError, match=r"1 of 2 labels name .* hold numbers that nothing names .*token0"):
        site_of(tmp_path, cases)
    np.testing.assert_array_equal(label_of(site_of(tmp_path, cases[:1]), 0), LIVER * 1)


def test_structure_sets_go_by_their_names_too(tmp_path: Path) -> None:
    square = [(0.5, 0.5), (3.5, 0.5), (3.5, 3.5), (0.5, 3.5)]
    series = Series(shape=(6, 9, 11))
    write_series(tmp_path / "ct", series)
    ds = structure_set(series, {1: [(1, square)], 2: [(4, square)], 3: []})
    for roi, name in zip(ds.StructureSetROISequence, ["tumour", "Liver", "unused"], strict=True):
        roi.ROIName = name
    label = write(ds, tmp_path / "rt.dcm")
    site = site_of(tmp_path, [Case("a", "a", "token0", (tmp_path / "ct",), label=label)])
    want = np.zeros((6, 9, 11), np.uint8)
    want[1, 1:4, 1:4], want[4, 1:4, 1:4] = 2, 1
    np.testing.assert_array_equal(label_of(site, 0), want)
    assert site.notes == ()  # a structure of a template that nobody drew is no structure


def test_a_class_of_which_only_an_empty_template_is_there_counts_as_not_named(tmp_path: Path) -> None:
    square = [(0.5, 0.5), (3.5, 0.5), (3.5, 3.5), (0.5, 3.5)]
    series = Series(shape=(6, 9, 11))
    write_series(tmp_path / "ct", series)
    ds = structure_set(series, {1: [(1, square)], 2: []})
    for roi, name in zip(ds.StructureSetROISequence, ["body", "liver"], strict=True):
        roi.ROIName = name
    case = Case("a", "a", "token0", (tmp_path / "ct",), label=write(ds, tmp_path / "rt.dcm"))
    with pytest.raises(DataError, match="none of 1 labels names a class"):
        site_of(tmp_path, [case])


@pytest.mark.parametrize(
    ("charset", "codec"), [("ISO_IR 100", "latin1"), ("ISO_IR 192", "utf-8"), ("", "utf-8")]
)
def test_names_are_read_in_the_files_character_set(tmp_path: Path, charset: str, codec: str) -> None:
    case = patient(tmp_path, 0, {"liver": LIVER})
    assert case.label is not None
    data = bytearray(case.label.read_bytes())
    ds = seg_of(Series(shape=(6, 9, 11)), {"L\u00e9ber": LIVER})
    ds.SpecificCharacterSet = charset
    write(ds, case.label)
    data = case.label.read_bytes()
    assert "L\u00e9ber".encode(codec) in data or not charset
    site = site_of(tmp_path, [case], {"leber": "liver"})
    assert site.notes == (
        "no label here names 'tumour'; if it is present but not labelled here, say so in task.labelled",
    )


# --- several files


def masks_of(tmp_path: Path, image, structures: dict[str, np.ndarray]) -> tuple[tuple[str, Path], ...]:
    paths = []
    for number, (name, planes) in enumerate(structures.items()):
        path = tmp_path / f"mask{number}.nii.gz"
        nib.Nifti1Image(hs.as_xyz(planes).astype(np.uint8), image.affine_ras).to_filename(path)
        paths.append((name, path))
    return tuple(paths)


def test_a_mask_per_structure_is_named_by_its_file(tmp_path: Path) -> None:
    case = patient(tmp_path, 0)
    (image,) = read(case.image[0])
    masks = masks_of(tmp_path, image, {"tumour": TUMOUR * 255, "spleen": LIVER, "Liver": LIVER})
    site = site_of(tmp_path, [Case("a", "a", "token0", case.image, masks=masks)])
    np.testing.assert_array_equal(label_of(site, 0), LIVER * 1 + TUMOUR * 2)
    assert "1 structures that the labels name match no class" in "\n".join(site.notes)


def test_masks_that_share_voxels_or_hold_several_values_are_refused(tmp_path: Path) -> None:
    case = patient(tmp_path, 0)
    (image,) = read(case.image[0])
    names = ClassNames(CLASSES)
    with pytest.raises(LabelError, match="18 voxels belong to several"):
        read_masks(masks_of(tmp_path, image, {"liver": LIVER, "tumour": LIVER}), image, names)
    with pytest.raises(LabelClassesError, match="holds 2 values beside 0"):
        read_masks(masks_of(tmp_path, image, {"liver": LIVER * 1 + TUMOUR * 2}), image, names)


def test_of_several_segmentations_those_that_name_classes_are_used_together(tmp_path: Path) -> None:
    series = Series(shape=(6, 9, 11))
    write_series(tmp_path / "ct", series)
    (image,) = read(tmp_path / "ct")

    def file(name: str, structures: dict[str, np.ndarray]) -> tuple[str, Path]:
        return "", write(seg_of(series, structures), tmp_path / f"{name}.dcm")

    one, two = file("one", {"Tumour": TUMOUR}), file("two", {"Bone": TUMOUR, "Liver": LIVER})
    label = read_masks((one, two, file("three", {"Skin": LIVER})), image, ClassNames(CLASSES))
    np.testing.assert_array_equal(label.array[0], hs.as_xyz(LIVER * 1 + TUMOUR * 2))
    again = file("again", {"liver": LIVER})
    np.testing.assert_array_equal(
        read_masks((two, again), image, ClassNames(CLASSES)).array[0], hs.as_xyz(LIVER * 1)
    )
    other = file("other", {"liver": TUMOUR})
    with pytest.raises(LabelClassesError, match="draw 'liver', and differently"):
        read_masks((two, other), image, ClassNames(CLASSES))


# --- classification


def test_targets_of_class_folders_are_those_of_the_study(tmp_path: Path) -> None:
    cases = tuple(
        Case(f"c{n}", f"c{n}", f"token{n}", (tmp_path,), target=target)
        for n, target in enumerate([0, 1, 1, 2])
    )
    index = Index(tmp_path, "test", cases, class_names=("Malignant", "normal", "other"))
    study = ClassNames(("normal", "benign", "malignant"))
    matched = match_targets(index, study)
    assert [case.target for case in matched.cases] == [2, 0, 0, None]
    assert "1 of the folder's 3 classes match no class of the study; their 1 cases" in matched.notes[0]
    assert matched.notes[1] == "no folder here is named after the study's 'benign'"
    with pytest.raises(DataError, match="none of the folder's 3 classes is one of the study"):
        match_targets(index, ClassNames(("healthy", "ill")))


# --- large numbers


def test_numbers_above_255_keep_their_meaning(tmp_path: Path) -> None:
    case = patient(tmp_path, 0)
    (image,) = read(case.image[0])
    path = tmp_path / "label.nii.gz"
    planes = LIVER * 256 + TUMOUR * 300
    nib.Nifti1Image(hs.as_xyz(planes).astype(np.int16), image.affine_ras).to_filename(path)
    names = ("background", *(f"region {number}" for number in range(1, 400)))
    index = Index(tmp_path, "test", (Case("a", "a", "token0", case.image, label=path),))
    settings = Images(spacing_mm="native", patch=None, cache="none", augment="none")
    index, classes = match_labels(index, ClassNames(names), SECRET)
    site = SiteDataModule(index, settings, "segment", classes=classes)
    prepared = site.prepared(site.cases("train")[0])
    assert prepared.label is not None
    assert set(np.unique(prepared.label)) == {0, 256, 300}
    assert set(np.unique(site.restored(prepared.label, "token0"))) == {0, 256, 300}
    batch = next(iter(site.train_dataloader()))
    assert set(batch["label"].unique().tolist()) == {0, 256, 300}
