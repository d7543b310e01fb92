"""What a folder is taken for, and what is said about one that is broken: which case, which row, the cure, no
patient.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medfed.data.datamodule import SiteDataModule
from medfed.data.index import Index, index_folder
from medfed.data.settings import Images
from medfed.data.splits import case_token
from medfed.errors import DataError, ImageError, LabelError

SECRET = b"a site's secret of some length"
SAMPLES = Path(__file__).parents[2] / "sample_data"
NATIVE = Images(spacing_mm="native", patch=None)

# Stands in every name, path and cell of the broken folders; no message may hold it.
MARK = "Meier"


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def folder_of(
    tmp_path: Path, rows: list[str], heading: str = "case,patient,image,label,target,split"
) -> Path:
    """Return a folder with three good pairs of files and a cases.csv of these rows."""
    folder = tmp_path / f"{MARK}_export"
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_nifti(folder / f"{MARK}_{name}.nii.gz", rng.normal(0, 1, (6, 5, 4)).astype(np.float32))
        label = np.zeros((6, 5, 4), np.uint8)
        label[2, 2, 2] = 1
        write_nifti(folder / f"{MARK}_{name}_label.nii.gz", label)
    (folder / "cases.csv").write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
    return folder


def row(
    name: str, *, patient: str = "", image: str = "", label: str = "", target: str = "1", split: str = "train"
) -> str:
    image = image or f"{MARK}_{name}.nii.gz"
    label = label or f"{MARK}_{name}_label.nii.gz"
    return f"{MARK}-{name},{patient or MARK + name},{image},{label},{target},{split}"


def index(folder: Path) -> Index:
    return index_folder(folder, site_secret=SECRET)


def token(name: str) -> str:
    return case_token(SECRET, f"{MARK}-{name}")


def refused(make: Callable[[], object], kind: type[DataError], *words: str) -> None:
    with pytest.raises(kind, match=re.escape(words[0])) as caught:
        make()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert MARK.lower() not in message.lower()
    assert ".nii" not in message
    # A chained error would print the reader's own words, which may hold a path.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hospital", ["north", "east", "south", "west", "university"])
def test_the_sample_hospitals(hospital: str) -> None:
    found = index(SAMPLES / hospital)
    assert found.layout == "cases.csv"
    assert len(found.cases) == 18
    assert found.patients == 16
    assert "18 cases of 16 patients" in found.describe()


def test_cases_csv_says_it_all(tmp_path: Path) -> None:
    rows = [
        row("a", split="val") + ",63,old scanner",
        row("b", target="0") + ",64,",
        row("c", split="test") + ",65,new",
    ]
    found = index(folder_of(tmp_path, rows, "case,patient,image,label,target,split,age,scanner"))
    first = found.cases[0]
    assert (first.id, first.patient, first.target, first.split) == (f"{MARK}-a", f"{MARK}a", 1, "val")
    assert first.attributes == {"age": "63", "scanner": "old scanner"}
    assert [path.name for path in first.image] == [f"{MARK}_a.nii.gz"]
    assert [case.split for case in found.cases] == ["val", "train", "test"]
    assert (
        found.describe()
        == "cases.csv: 3 cases of 3 patients (1 train, 1 val, 1 test), 3 with a label, 3 with a target"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spreadsheets_ways_of_writing_a_table(tmp_path: Path, delimiter: str, mark: str, end: str) -> None:
    folder = folder_of(tmp_path, [])
    lines = ["Case,Image,Label", f"x,{MARK}_a.nii.gz,{MARK}_a_label.nii.gz", ",,"]
    (folder / "cases.csv").write_text(
        mark + end.join(lines).replace(",", delimiter), encoding="utf-8", newline=""
    )
    assert [case.id for case in index(folder).cases] == ["x"]


def test_several_channels_are_several_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", image=f"{MARK}_a.nii.gz|{MARK}_b.nii.gz")])
    data = SiteDataModule(
        index(folder), Images(spacing_mm="native", patch=None, channels=2), "segment", classes=2
    )
    image = data.dataset("train")[0]["image"]
    assert tuple(image.shape) == (2, 6, 5, 4)
    assert not np.allclose(image[0], image[1])


def test_a_case_prints_no_path_and_no_patient(tmp_path: Path) -> None:
    found = index(folder_of(tmp_path, [row("a")]))
    assert MARK not in repr(found) + str(found) + repr(found.cases) + found.describe()
    assert token("a") in repr(found.cases[0])


# --- BIDS ---------------------------------------------------------------------------------------------------

ZEROS = np.zeros((4, 4, 4), np.float32)


def bids(folder: Path, *names: str) -> Path:
    """Files by their path within; a subject's mark is put in front of its number."""
    for name in names:
        write_nifti(folder / name.replace("sub-", f"sub-{MARK}"), ZEROS)
    return folder


def test_bids_takes_the_labelled_kind_of_image_and_a_subject_s_sessions_as_one_patient(
    tmp_path: Path,
) -> None:
    folder = bids(
        tmp_path,
        "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz",
        "sub-1/ses-b/func/sub-1_ses-b_bold.nii.gz",
        "sub-2/anat/sub-2_T1w.nii.gz",
        "sub-3/anat/sub-3_T1w.nii.gz",
        "derivatives/labels/sub-1/ses-a/anat/sub-1_ses-a_T1w_seg.nii.gz",
        "derivatives/labels/sub-1/ses-b/anat/sub-1_ses-b_label-lesion_mask.nii.gz",
        "derivatives/sub-2/anat/sub-2_dseg.nii.gz",
        "derivatives/fast/sub-2/anat/sub-2_desc-corrected_T1w.nii.gz",
        "derivatives/labels/sub-9/anat/sub-9_T1w_seg.nii.gz",
    )
    found = index(folder)
    assert found.layout == "BIDS"
    label = {
        case.id.replace(MARK, ""): case.label and case.label.name.replace(MARK, "") for case in found.cases
    }
    assert label == {
        "sub-1_ses-a_T1w": "sub-1_ses-a_T1w_seg.nii.gz",
        "sub-1_ses-b_T1w": "sub-1_ses-b_label-lesion_mask.nii.gz",
        "sub-2_T1w": "sub-2_dseg.nii.gz",
        "sub-3_T1w": None,
    }
    assert found.patients == 3
    assert found.notes == (
        "1 images of another contrast than T1w are left out",
        "1 labels below derivatives belong to no image and are left out",
    )


def test_bids_guesses_neither_the_kind_of_image_nor_the_label(tmp_path: Path) -> None:
    two = bids(tmp_path / "kinds", "sub-1/anat/sub-1_T1w.nii.gz", f"sub-2/anat/sub-2_{MARK}.nii.gz")
    with pytest.raises(DataError, match=r"several contrasts \(1 of no usual contrast, 1 T1w\)") as told:
        index(two)
    assert MARK not in str(told.value)
    labels = bids(
        tmp_path / "labels",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/one/sub-1/anat/sub-1_T1w_seg.nii.gz",
        "derivatives/two/sub-1/anat/sub-1_T1w_seg.nii.gz",
    )
    with pytest.raises(DataError, match=r"case [0-9a-f]{12}: derivatives has 2 labels for it; keep") as told:
        index(labels)
    assert MARK not in str(told.value)


def decathlon(folder: Path, names: list[str], *, nnunet: bool = False) -> None:
    for name in names:
        for channel in ("_0000", "_0001") if nnunet else ("",):
            write_nifti(folder / "imagesTr" / f"{name}{channel}.nii.gz", np.zeros((4, 4, 4), np.float32))
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", np.zeros((4, 4, 4), np.uint8))
    # The Decathlon's archives carry macOS's shadow files.
    (folder / "imagesTr" / f"._{names[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    (folder / "labelsTr" / f"._{names[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    if nnunet:
        described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    else:
        described = {
            "labels": {"0": "background", "1": "anterior", "2": "posterior"},
            "modality": {"0": "MRI"},
        }
    (folder / "dataset.json").write_text(json.dumps(described))


def test_the_decathlons_layout(tmp_path: Path) -> None:
    decathlon(tmp_path, ["hippocampus_001", "hippocampus_002", "hippocampus_010"])
    write_nifti(tmp_path / "imagesTs" / "hippocampus_900.nii.gz", np.zeros((4, 4, 4), np.float32))
    found = index(tmp_path)
    assert found.layout == "Medical Segmentation Decathlon"
    assert [case.id for case in found.cases] == ["hippocampus_001", "hippocampus_002", "hippocampus_010"]
    assert found.class_names == ("background", "anterior", "posterior")
    assert {case.split for case in found.cases} == {"train", "val", "test"}
    assert any("imagesTs" in note for note in found.notes)


def test_the_nnunet_layout(tmp_path: Path) -> None:
    decathlon(tmp_path, ["case_1", "case_2"], nnunet=True)
    found = index(tmp_path)
    assert found.layout == "nnU-Net raw"
    assert [[path.name for path in case.image] for case in found.cases] == [
        ["case_1_0000.nii.gz", "case_1_0001.nii.gz"],
        ["case_2_0000.nii.gz", "case_2_0001.nii.gz"],
    ]
    assert found.class_names == ("background", "tumour")


def test_a_label_without_its_image(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1", "x2"])
    (tmp_path / "imagesTr" / "x2.nii.gz").unlink()
    refused(lambda: index(tmp_path), ImageError, case_token(SECRET, "x2"), "imagesTr lacks its image")


def test_a_decathlons_names_under_an_nnunets_description(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1"], nnunet=True)
    (tmp_path / "imagesTr" / "x1_0000.nii.gz").rename(tmp_path / "imagesTr" / "x1.nii.gz")
    refused(lambda: index(tmp_path), DataError, "expected as CASE_0000;", "omit channel_names")


def class_folders(folder: Path, *, parents: tuple[str, ...] = ("",)) -> None:
    for parent in parents:
        for name, count in (("healthy", 3), ("tumour", 2)):
            for i in range(count):
                write_nifti(
                    folder / parent / name / f"{MARK}{parent}{i}.nii.gz", np.zeros((4, 4, 4), np.float32)
                )


def test_a_folder_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path)
    found = index(tmp_path)
    assert found.layout == "one folder per class"
    assert found.class_names == ("healthy", "tumour")
    assert [case.target for case in found.cases] == [0, 0, 0, 1, 1]


def test_a_folder_a_class_below_a_folder_a_split(tmp_path: Path) -> None:
    class_folders(tmp_path, parents=("train", "val", "test"))
    found = index(tmp_path)
    assert [(case.split, case.target) for case in found.cases].count(("val", 1)) == 2
    assert len(found.cases) == 15


def test_a_class_without_cases(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / f"{MARK}_unclear").mkdir()
    refused(lambda: index(tmp_path), DataError, "class 0 of 3", "has no image", "remove its folder")


def test_a_tree_of_dicom_series_with_segmentations(tmp_path: Path) -> None:
    source = SAMPLES / "north"
    for case in ("north-01", "north-02", "north-05"):
        shutil.copytree(source / "images" / case, tmp_path / "archive" / case / "ct")
    for case in ("north-01", "north-02"):  # names say nothing: the reference in the header does
        shutil.copy(
            source / "labels" / f"{case}.dcm", tmp_path / "archive" / f"{'ab'[case == 'north-01']}.dcm"
        )
    shutil.copy(source / "images" / "north-03" / "IM0001.dcm", tmp_path / "archive" / "scout.dcm")
    found = index(tmp_path)
    assert found.layout == "a tree of DICOM series"
    labels = {case.patient: case.label and case.label.name for case in found.cases}
    assert labels == {"N01": "b.dcm", "N02": "a.dcm", "N05": None}
    assert any("1 series with fewer than 5 slices" in note for note in found.notes)
    data = SiteDataModule(found, NATIVE, "segment", classes=2)
    assert any("1 cases have no label" in note for note in data.notes)
    for case in found.cases:
        if case.label is not None:
            _, label = data.original(case)
            by_table = SiteDataModule(index(source), NATIVE, "segment", classes=2)
            same = next(c for c in by_table.index.cases if c.patient == case.patient)
            expected = by_table.original(same)[1]
            assert label is not None
            assert expected is not None
            np.testing.assert_array_equal(label.array, expected.array)
            assert label.array.any()


def test_two_segmentations_of_one_series(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "north" / "images" / "north-01", tmp_path / "ct")
    for name in ("one", "two"):
        shutil.copy(SAMPLES / "north" / "labels" / "north-01.dcm", tmp_path / f"{name}.dcm")
    refused(lambda: index(tmp_path), DataError, "two label objects", "keep the right one")


# --- broken folders -----------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(lambda: index(tmp_path / MARK), DataError, "not a folder", "site file")


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / MARK).mkdir()
    refused(lambda: index(tmp_path / MARK), DataError, "nothing that medfed knows", "cases.csv")


def test_a_table_without_rows(tmp_path: Path) -> None:
    refused(lambda: index(folder_of(tmp_path, [])), DataError, "no case")


def test_an_empty_table(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [])
    (folder / "cases.csv").write_bytes(b"")
    refused(lambda: index(folder), DataError, "cases.csv is empty", "names the columns")


def test_a_short_secret(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8 bytes; at least 16"):
        index_folder(folder_of(tmp_path, [row("a")]), site_secret=b"12345678")


def test_a_missing_image(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", image=f"{MARK}_gone.nii.gz")])
    refused(lambda: index(folder), ImageError, "row 3", token("b"), "image is not there", "correct the path")


def test_a_missing_label(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", label=f"{MARK}_gone.nii.gz")])
    refused(lambda: index(folder), ImageError, "row 3", token("b"), "label is not there", "correct the path")


def test_a_duplicate_case(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b"), row("a", image=f"{MARK}_c.nii.gz")])
    refused(lambda: index(folder), DataError, "row 4", "as row 2", token("a"), "id of its own")


def test_a_patient_in_two_splits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", patient=MARK), row("b", patient=MARK, split="test"), row("c")])
    refused(lambda: index(folder), DataError, token("a"), token("b"), "two splits", "one split")


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("case,patient,imgae,label,target,split", ("no column 'image'", "is it 'imgae'?")),
        ("cases,patient,image,label,target,split", ("no column 'case'", "is it 'cases'?")),
        ("case,patient,x,label,target,split", ("no column 'image'", "first line")),
        ("case,case,image,label,target,split", ("same name", "1 and 2")),
    ],
)
def test_a_heading_that_lacks_a_column(tmp_path: Path, heading: str, words: tuple[str, ...]) -> None:
    refused(lambda: index(folder_of(tmp_path, [row("a")], heading)), DataError, *words)


def test_a_table_without_a_heading_leaks_no_row(tmp_path: Path) -> None:
    refused(
        lambda: index(folder_of(tmp_path, [row("b")], row("a"))), DataError, "no column 'case'", "first line"
    )


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("validation", "val"), ("tset", "test"), (MARK, "")]
)
def test_an_unknown_split(tmp_path: Path, word: str, near: str) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", split=word)])
    hint = f"did you mean '{near}'?" if near else "there are train, val, test"
    refused(lambda: index(folder), DataError, "row 3", token("b"), "'split'", hint)


@pytest.mark.parametrize(
    ("cell", "word"), [("", "is empty"), (MARK, "no class number"), ("-1", "no class"), ("0.5", "no class")]
)
def test_a_target_that_is_none(tmp_path: Path, cell: str, word: str) -> None:
    refused(
        lambda: index(folder_of(tmp_path, [row("a"), row("b", target=cell)])),
        DataError,
        "row 3",
        token("b"),
        word,
    )


def test_a_target_beyond_the_tasks_classes(tmp_path: Path) -> None:
    found = index(folder_of(tmp_path, [row("a"), row("b", target="2")]))
    refused(lambda: SiteDataModule(found, NATIVE, "classify", classes=2), DataError, token("b"), "has 2")


def test_a_row_with_a_cell_too_many(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b") + f",{MARK}"])
    refused(lambda: index(folder), DataError, "row 3 has 7 cells", "heading has 6")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"case,image\n\xff\xfe,x\n", "UTF-8"),
        (b"case,image\n\0\0\n", "zero bytes"),
        (b'case,image\n"Meier,x\n', "quote"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: bytes, word: str) -> None:
    folder = folder_of(tmp_path, [])
    (folder / "cases.csv").write_bytes(content)
    refused(lambda: index(folder), DataError, "cases.csv", word)


def read_all(folder: Path, classes: int = 2) -> None:
    dataset = SiteDataModule(index(folder), NATIVE, "segment", classes=classes).dataset("train")
    for i in range(len(dataset)):  # type: ignore[arg-type]
        dataset[i]


def test_an_unreadable_nifti(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    content = (folder / f"{MARK}_b.nii.gz").read_bytes()
    (folder / f"{MARK}_b.nii.gz").write_bytes(content[: len(content) // 2])
    refused(lambda: read_all(folder), ImageError, f"case {token('b')}")


def test_a_label_of_another_shape(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    write_nifti(folder / f"{MARK}_b_label.nii.gz", np.zeros((6, 5, 3), np.uint8))
    refused(lambda: read_all(folder), LabelError, f"case {token('b')}")


def test_a_label_with_a_value_that_is_no_class(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    write_nifti(folder / f"{MARK}_b_label.nii.gz", np.full((6, 5, 4), 7, np.uint8))
    refused(lambda: read_all(folder), LabelError, f"case {token('b')}", "7")


def test_channels_on_different_grids(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", image=f"{MARK}_a.nii.gz|{MARK}_b.nii.gz")])
    moved = np.eye(4)
    moved[0, 3] = 1.5
    write_nifti(folder / f"{MARK}_b.nii.gz", np.zeros((6, 5, 4), np.float32), moved)
    settings = Images(spacing_mm="native", patch=None, channels=2)
    refused(
        lambda: SiteDataModule(index(folder), settings, "segment", classes=2).dataset("train")[0],
        ImageError,
        token("a"),
        "channel 2",
        "1.50 mm",
    )


def test_more_channels_than_the_study_has(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", image=f"{MARK}_a.nii.gz|{MARK}_b.nii.gz")])
    refused(lambda: read_all(folder), ImageError, token("a"), "2 channels", "data.channels is 1")


def test_the_index_writes_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a")])
    before = sorted(path.name for path in folder.iterdir())
    index(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_images_beside_labels_are_pairs_and_not_two_classes(tmp_path):
    for name, folder in (("a_0000", "images"), ("a_seg", "masks"), ("b", "images")):
        path = tmp_path / folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    index = index_folder(tmp_path, site_secret=SECRET)
    assert index.layout == "images beside labels"
    assert [(case.id, case.label is not None, case.target) for case in index.cases] == [
        ("a", True, None),
        ("b", False, None),
    ]
    (tmp_path / "masks" / "c.nii").touch()
    with pytest.raises(ImageError, match="a label of this name and no image"):
        index_folder(tmp_path, site_secret=SECRET)
    (tmp_path / "masks" / "c.nii").rename(tmp_path / "masks" / "a.nii")
    with pytest.raises(DataError, match="two files of one name"):
        index_folder(tmp_path, site_secret=SECRET)


def test_images_beside_labels_below_the_splits(tmp_path):
    for split in ("train", "test"):
        for folder in ("images", "labels"):
            (tmp_path / split / folder).mkdir(parents=True)
            (tmp_path / split / folder / "a.nii.gz").touch()
    index = index_folder(tmp_path, site_secret=SECRET)
    assert sorted((case.id, case.split) for case in index.cases) == [("test/a", "test"), ("train/a", "train")]
