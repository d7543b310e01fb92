"""What every layout keeps: a small folder is recognised and listed, and nothing printed names a patient.

The layouts are those of the registry: a new file needs an example below, and no other edit here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from medfed.data import index as index_module
from medfed.data.index import index_folder
from medfed.data.layouts import CaseError, CaseListing, Layout, ListedCase, layouts, recognise
from medfed.data.splits import SPLITS, UNASSIGNED, case_token
from medfed.errors import DataError, ImageError
from medfed.registry import kind_of, kinds, summary

SAMPLES = Path(__file__).parents[2] / "sample_data"
SECRET = b"a site's secret of some length"

# Stands in every name that a hospital chooses; nothing that is printed may hold it.
MARK = "Meier"

# A listed case by value: id, patient, file names of images and label, target, split.
Value = tuple[str, str, tuple[str, ...], str | None, int | None, str]


@dataclass(frozen=True)
class Example:
    """A small folder of one layout, and what listing it must give."""

    make: Callable[[Path], None]
    cases: list[Value]
    notes: tuple[str, ...]
    class_names: tuple[str, ...] = ()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def cases_csv(folder: Path) -> None:
    touch(folder, f"{MARK}_1.nii.gz", f"{MARK}_2.nii.gz", f"{MARK}_l.nii.gz")
    rows = [
        "case,image,label,target,split",
        f"{MARK}-a,{MARK}_1.nii.gz|{MARK}_2.nii.gz,{MARK}_l.nii.gz,1,val",
        f"{MARK}-b,{MARK}_2.nii.gz,,0,",
    ]
    (folder / "cases.csv").write_text("\n".join(rows))


def decathlon(folder: Path) -> None:
    touch(
        folder,
        f"imagesTr/{MARK}1.nii.gz",
        f"imagesTr/{MARK}2.nii.gz",
        f"labelsTr/{MARK}1.nii.gz",
        "imagesTs/x",
    )
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "tumour", "0": "background"}}))


def bids(folder: Path) -> None:
    sub = f"sub-{MARK}1"
    touch(
        folder,
        f"{sub}/ses-a/anat/{sub}_ses-a_T1w.nii.gz",
        f"{sub}/ses-b/anat/{sub}_ses-b_T1w.nii.gz",
        f"{sub}/ses-b/anat/{sub}_ses-b_FLAIR.nii.gz",
        f"derivatives/{sub}/ses-a/anat/{sub}_ses-a_T1w_seg.nii.gz",
    )


def paired(folder: Path) -> None:
    touch(folder, f"images/{MARK}_0000.nii.gz", f"images/{MARK}2.nii", f"masks/{MARK}_seg.nii.gz")


def class_folders(folder: Path) -> None:
    touch(folder, f"train/a/{MARK}.nii.gz", f"train/b/{MARK}.nii.gz", f"test/b/{MARK}.nii")


def dicom_tree(folder: Path) -> None:
    for number, path in enumerate(sorted((SAMPLES / "north" / "images" / "north-01").iterdir())):
        ds = pydicom.dcmread(path)
        ds.PatientID, ds.SeriesInstanceUID = MARK, "1.2.3"
        (folder / "ct").mkdir(parents=True, exist_ok=True)
        ds.save_as(folder / "ct" / f"{number}.dcm")
    shutil.copy(path, folder / "scout.dcm")  # of another series: one slice


EXAMPLES = {
    "cases_csv": Example(
        cases_csv,
        [
            (
                f"{MARK}-a",
                f"{MARK}-a",
                (f"{MARK}_1.nii.gz", f"{MARK}_2.nii.gz"),
                f"{MARK}_l.nii.gz",
                1,
                "val",
            ),
            (f"{MARK}-b", f"{MARK}-b", (f"{MARK}_2.nii.gz",), None, 0, UNASSIGNED),
        ],
        ("cases.csv has no column 'patient': each case counts as a patient of its own",),
    ),
    "decathlon": Example(
        decathlon,
        [(f"{MARK}1", f"{MARK}1", (f"{MARK}1.nii.gz",), f"{MARK}1.nii.gz", None, UNASSIGNED)],
        (
            "1 images in imagesTr have no label and are left out",
            "imagesTs has no labels and is left out; medfed cuts a test split from imagesTr",
            "the layout names no patients: each case counts as a patient of its own",
        ),
        ("background", "tumour"),
    ),
    "bids": Example(
        bids,
        [
            (
                f"sub-{MARK}1_ses-a_T1w",
                f"{MARK}1",
                (f"sub-{MARK}1_ses-a_T1w.nii.gz",),
                f"sub-{MARK}1_ses-a_T1w_seg.nii.gz",
                None,
                UNASSIGNED,
            ),
            (
                f"sub-{MARK}1_ses-b_T1w",
                f"{MARK}1",
                (f"sub-{MARK}1_ses-b_T1w.nii.gz",),
                None,
                None,
                UNASSIGNED,
            ),
        ],
        ("1 images of another contrast than T1w are left out",),
    ),
    "paired": Example(
        paired,
        [
            (MARK, MARK, (f"{MARK}_0000.nii.gz",), f"{MARK}_seg.nii.gz", None, UNASSIGNED),
            (f"{MARK}2", f"{MARK}2", (f"{MARK}2.nii",), None, None, UNASSIGNED),
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
    ),
    "class_folders": Example(
        class_folders,
        [
            (f"train/a/{MARK}", f"train/a/{MARK}", (f"{MARK}.nii.gz",), None, 0, "train"),
            (f"test/b/{MARK}", f"test/b/{MARK}", (f"{MARK}.nii",), None, 1, "test"),
            (f"train/b/{MARK}", f"train/b/{MARK}", (f"{MARK}.nii.gz",), None, 1, "train"),
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
        ("a", "b"),
    ),
    "dicom_tree": Example(
        dicom_tree,
        [(f"{MARK}/1.2.3", MARK, ("ct",), None, None, UNASSIGNED)],
        ("1 series with fewer than 5 slices are left out (localizers)",),
    ),
}


@pytest.fixture(params=sorted(kinds("layouts")))
def layout(request: pytest.FixtureRequest) -> Layout:
    kind = kinds("layouts")[request.param]
    assert issubclass(kind, Layout)
    return kind()


@pytest.fixture
def example(layout: Layout) -> Example:
    return EXAMPLES[kind_of(layout)]


@pytest.fixture
def folder(example: Example, tmp_path: Path) -> Path:
    folder = tmp_path / MARK
    folder.mkdir()
    example.make(folder)
    return folder


def value(case: ListedCase) -> Value:
    label = case.label.name if case.label is not None else None
    return case.id, case.patient, tuple(path.name for path in case.image), label, case.target, case.split


def test_its_example_is_recognised_by_it_before_any_other(layout: Layout, folder: Path) -> None:
    assert layout.recognises(folder)
    assert recognise(folder) == layout


def test_an_empty_folder_is_not_recognised(layout: Layout, tmp_path: Path) -> None:
    assert not layout.recognises(tmp_path)


def test_the_cases_notes_and_classes_by_value(layout: Layout, example: Example, folder: Path) -> None:
    listing = layout.read(folder)
    assert [value(case) for case in listing.cases] == example.cases
    assert listing.notes == example.notes
    assert listing.class_names == example.class_names


def test_every_split_is_known_and_every_file_exists(layout: Layout, folder: Path) -> None:
    for case in layout.read(folder).cases:
        assert case.split in (*SPLITS, UNASSIGNED)
        assert all(path.exists() for path in case.image)
        assert case.label is None or case.label.exists()


def test_what_it_prints_names_no_patient(layout: Layout, folder: Path) -> None:
    listing = layout.read(folder)
    index = index_folder(folder, site_secret=SECRET)
    printed = [repr(listing), str(listing.cases[0]), repr(index), index.describe(), repr(index.cases)]
    printed += [listing.title, *listing.notes, *index.notes]
    assert MARK.lower() not in " ".join(printed).lower()


def test_the_index_names_its_cases_by_token(layout: Layout, folder: Path) -> None:
    listing, index = layout.read(folder), index_folder(folder, site_secret=SECRET)
    assert index.layout == listing.title
    assert [case.token for case in index.cases] == [case_token(SECRET, case.id) for case in listing.cases]


def test_reading_twice_gives_the_same_and_writes_nothing(layout: Layout, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert layout.read(folder) == layout.read(folder)
    assert sorted(folder.rglob("*")) == before


def test_it_says_what_it_is(layout: Layout) -> None:
    assert layout.title
    assert layout.evidence
    assert len(summary(type(layout))) > 20


def test_the_order_in_which_layouts_are_tried() -> None:
    order = [kind_of(layout) for layout in layouts()]
    assert order == ["cases_csv", "decathlon", "bids", "paired", "class_folders", "dicom_tree"]
    assert len({layout.order for layout in layouts()}) == len(order)


@pytest.mark.parametrize(
    ("where", "message"),
    [("", "case {}: no image"), ("cases.csv row 3", "cases.csv row 3 (case {}): no image")],
)
def test_the_index_names_the_case_of_a_layouts_error_by_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, message: str
) -> None:
    class Broken(Layout, tag="broken", frozen=True):
        def read(self, folder: Path) -> CaseListing:
            raise CaseError(MARK, "no image", ImageError, where)

    monkeypatch.setattr(index_module, "recognise", lambda folder: Broken())
    with pytest.raises(ImageError, match="no image") as caught:
        index_folder(tmp_path, site_secret=SECRET)
    assert str(caught.value) == message.format(case_token(SECRET, MARK))
    assert type(caught.value) is ImageError


def test_a_case_error_hides_the_id() -> None:
    error = CaseError(MARK, "no image")
    assert MARK not in repr(error) + str(error)
    assert isinstance(error, DataError)
