"""Every layout of the registry keeps the contract of medfed.testing, and the index names its cases by token.

A new layout needs an example below, and no other edit here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from contract import checks_of, run

from medfed.data import index as index_module
from medfed.data.index import index_folder
from medfed.data.layouts import CaseError, CaseListing, Layout, Survey, choose_layout, layouts
from medfed.data.layouts.amos import AMOS
from medfed.data.layouts.bids import BIDS
from medfed.data.layouts.cases_csv import CasesCsv
from medfed.data.layouts.class_folders import ClassFolders
from medfed.data.layouts.decathlon import Decathlon
from medfed.data.layouts.dicom_tree import DicomTree
from medfed.data.layouts.nnunet_raw import NnUNetRaw
from medfed.data.layouts.paired import Paired
from medfed.data.layouts.patient_folders import PatientFolders
from medfed.data.layouts.pattern import Pattern
from medfed.data.layouts.structure_folders import StructureFolders
from medfed.data.splits import case_token
from medfed.errors import DataError, ImageError
from medfed.registry import kinds
from medfed.testing import PATIENT, ExpectedCase, LayoutExample, check_layout
from medfed.testing._layouts import written

SAMPLES = Path(__file__).parents[2] / "sample_data"
SECRET = b"a site's secret of some length"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def cases_csv(folder: Path) -> None:
    touch(folder, f"{PATIENT}_1.nii.gz", f"{PATIENT}_2.nii.gz", f"{PATIENT}_l.nii.gz")
    rows = [
        "case,image,label,target,split",
        f"{PATIENT}-a,{PATIENT}_1.nii.gz|{PATIENT}_2.nii.gz,{PATIENT}_l.nii.gz,1,val",
        f"{PATIENT}-b,{PATIENT}_2.nii.gz,,0,",
    ]
    (folder / "cases.csv").write_text("\n".join(rows))


def decathlon(folder: Path) -> None:
    touch(
        folder,
        f"imagesTr/{PATIENT}1.nii.gz",
        f"imagesTr/{PATIENT}2.nii.gz",
        f"imagesTr/{PATIENT}3.nii.gz",
        f"labelsTr/{PATIENT}1.nii.gz",
        f"labelsTr/{PATIENT}3.nii.gz",
        "imagesTs/x",
    )
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "tumour", "0": "background"}}))


def bids(folder: Path) -> None:
    sub = f"sub-{PATIENT}1"
    touch(
        folder,
        f"{sub}/ses-a/anat/{sub}_ses-a_T1w.nii.gz",
        f"{sub}/ses-b/anat/{sub}_ses-b_T1w.nii.gz",
        f"{sub}/ses-b/anat/{sub}_ses-b_FLAIR.nii.gz",
        f"derivatives/{sub}/ses-a/anat/{sub}_ses-a_T1w_seg.nii.gz",
        f"{sub}/ses-c/anat/{sub}_ses-c_T1w.nii.gz",
        f"derivatives/{sub}/ses-c/anat/{sub}_ses-c_T1w_dseg.nii.gz",
    )


def paired(folder: Path) -> None:
    touch(folder, f"images/{PATIENT}_0000.nii.gz", f"images/{PATIENT}2.nii", f"masks/{PATIENT}_seg.nii.gz")
    touch(folder, f"images/{PATIENT}3.nii.gz", f"masks/{PATIENT}3.nii.gz")


def class_folders(folder: Path) -> None:
    for path in ("train/benign/{}1.nii.gz", "train/malignant/{}2.nii.gz", "test/benign/{}3.nii.gz"):
        touch(folder, path.format(PATIENT))
    touch(folder, f"test/malignant/{PATIENT}4.nii")


def nnunet_raw(folder: Path) -> None:
    for channel in ("_0000", "_0001"):
        touch(folder, f"imagesTr/{PATIENT}1{channel}.nii.gz", f"imagesTr/{PATIENT}2{channel}.nii.gz")
        touch(folder, f"imagesTr/{PATIENT}3{channel}.nii.gz", f"imagesTs/{PATIENT}9{channel}.nii.gz")
    touch(folder, f"labelsTr/{PATIENT}1.nii.gz", f"labelsTr/{PATIENT}3.nii.gz")
    described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 3}}
    (folder / "dataset.json").write_text(json.dumps(described))


def dicom_tree(folder: Path) -> None:
    for number, path in enumerate(sorted((SAMPLES / "north" / "images" / "north-01").iterdir())):
        ds = pydicom.dcmread(path)
        ds.PatientID, ds.SeriesInstanceUID = PATIENT, "1.2.3"
        (folder / "ct").mkdir(parents=True, exist_ok=True)
        ds.save_as(folder / "ct" / f"{number}.dcm")
    shutil.copy(path, folder / "scout.dcm")  # of another series: one slice


def amos(folder: Path) -> None:
    lists = {}
    for key, end, number in (("training", "Tr", 1), ("validation", "Va", 2)):
        name = f"{PATIENT}{number}.nii.gz"
        touch(folder, f"images{end}/{name}", f"labels{end}/{name}")
        lists[key] = [{"image": f"./images{end}/{name}", "label": f"./labels{end}/{name}"}]
    touch(folder, f"imagesTs/{PATIENT}3.nii.gz")
    described = {"labels": {"0": "background", "1": "spleen"}, "modality": {"0": "CT"}, **lists}
    (folder / "dataset.json").write_text(json.dumps(described))


def patient_folders(folder: Path) -> None:
    for number in (1, 2, 4):
        name = f"{PATIENT}-{number}"
        touch(folder, *(f"{name}/{name}-{end}.nii.gz" for end in ("t2w", "t1c", "seg", "t1n", "t2f")))
    touch(folder, f"{PATIENT}-1/{PATIENT}_report.nii.gz", f"{PATIENT}-3/other.nii.gz")


def structure_folders(folder: Path) -> None:
    touch(folder, f"images/{PATIENT}1.nii.gz", f"images/{PATIENT}2.nii.gz")
    touch(folder, f"labels/liver/{PATIENT}1.nii.gz", f"labels/tumour/{PATIENT}1_seg.nii.gz")
    touch(folder, f"labels/liver/{PATIENT}2.nii.gz")


def pattern(folder: Path) -> None:
    for split, name in (("train", f"{PATIENT}1"), ("test", f"{PATIENT}2")):
        touch(folder, *(f"{split}/{name}/v1_{end}.nii.gz" for end in ("t1", "t2", "seg", "other")))
    touch(folder, f"test/{PATIENT}2/v2_t1.nii.gz", f"test/{PATIENT}2/v2_t2.nii.gz")


EXAMPLES = {
    "amos": LayoutExample(
        AMOS(),
        amos,
        [
            ExpectedCase(
                f"{PATIENT}{n}",
                f"{PATIENT}{n}",
                (f"{PATIENT}{n}.nii.gz",),
                f"{PATIENT}{n}.nii.gz",
                split=split,
            )
            for n, split in ((1, ""), (2, "val"))
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
        ("background", "spleen"),
        {0: "background", 1: "spleen"},
        ("CT",),
        left_out={"nifti files that no case uses": 1},
    ),
    "patient_folders": LayoutExample(
        PatientFolders(),
        patient_folders,
        [
            ExpectedCase(
                name,
                name,
                tuple(f"{name}-{channel}.nii.gz" for channel in ("t1c", "t1n", "t2f", "t2w")),
                f"{name}-seg.nii.gz",
            )
            for name in (f"{PATIENT}-1", f"{PATIENT}-2", f"{PATIENT}-4")
        ],
        channels=("t1c", "t1n", "t2f", "t2w"),
        left_out={"nifti files that no case uses": 2},
    ),
    "structure_folders": LayoutExample(
        StructureFolders(),
        structure_folders,
        [ExpectedCase(f"{PATIENT}{n}", f"{PATIENT}{n}", (f"{PATIENT}{n}.nii.gz",)) for n in (1, 2)],
        ("the layout names no patients: each case counts as a patient of its own",),
        masks=(("liver", "tumour"), ("liver",)),
    ),
    "pattern": LayoutExample(
        Pattern(
            image={"T1": "{split}/{patient}/{case}_t1.nii.gz", "T2": "{split}/{patient}/{case}_t2.nii.gz"},
            label="{split}/{patient}/{case}_seg.nii.gz",
        ),
        pattern,
        [
            ExpectedCase(
                f"{split}/{PATIENT}{n}/{visit}",
                f"{PATIENT}{n}",
                (f"{visit}_t1.nii.gz", f"{visit}_t2.nii.gz"),
                label,
                split=split,
            )
            for split, n, visit, label in (
                ("train", 1, "v1", "v1_seg.nii.gz"),
                ("test", 2, "v1", "v1_seg.nii.gz"),
                ("test", 2, "v2", None),
            )
        ],
        channels=("T1", "T2"),
        left_out={"nifti files that no case uses": 2},
        given=True,
    ),
    "cases_csv": LayoutExample(
        CasesCsv(),
        cases_csv,
        [
            ExpectedCase(
                f"{PATIENT}-a",
                f"{PATIENT}-a",
                (f"{PATIENT}_1.nii.gz", f"{PATIENT}_2.nii.gz"),
                f"{PATIENT}_l.nii.gz",
                target=1,
                split="val",
            ),
            ExpectedCase(f"{PATIENT}-b", f"{PATIENT}-b", (f"{PATIENT}_2.nii.gz",), target=0),
        ],
        ("cases.csv has no column 'patient': each case counts as a patient of its own",),
    ),
    "decathlon": LayoutExample(
        Decathlon(),
        decathlon,
        [
            ExpectedCase(name, name, (f"{name}.nii.gz",), f"{name}.nii.gz")
            for name in (f"{PATIENT}1", f"{PATIENT}3")
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
        ("background", "tumour"),
        {0: "background", 1: "tumour"},
        left_out={"images in imagesTr without a label": 1, "empty files that no case uses": 1},
    ),
    "nnunet_raw": LayoutExample(
        NnUNetRaw(),
        nnunet_raw,
        [
            ExpectedCase(name, name, (f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"), f"{name}.nii.gz")
            for name in (f"{PATIENT}1", f"{PATIENT}3")
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
        (),
        {0: "background", 3: "tumour"},
        ("T1", "T2"),
        left_out={
            "images in imagesTr without a label": 2,
            "images in imagesTs, which has no labels; medfed cuts a test split from imagesTr": 2,
        },
    ),
    "bids": LayoutExample(
        BIDS(),
        bids,
        [
            ExpectedCase(
                f"sub-{PATIENT}1_ses-a_T1w",
                f"{PATIENT}1",
                (f"sub-{PATIENT}1_ses-a_T1w.nii.gz",),
                f"sub-{PATIENT}1_ses-a_T1w_seg.nii.gz",
            ),
            ExpectedCase(f"sub-{PATIENT}1_ses-b_T1w", f"{PATIENT}1", (f"sub-{PATIENT}1_ses-b_T1w.nii.gz",)),
            ExpectedCase(
                f"sub-{PATIENT}1_ses-c_T1w",
                f"{PATIENT}1",
                (f"sub-{PATIENT}1_ses-c_T1w.nii.gz",),
                f"sub-{PATIENT}1_ses-c_T1w_dseg.nii.gz",
            ),
        ],
        left_out={"images of another contrast than T1w": 1},
    ),
    "paired": LayoutExample(
        Paired(),
        paired,
        [
            ExpectedCase(PATIENT, PATIENT, (f"{PATIENT}_0000.nii.gz",), f"{PATIENT}_seg.nii.gz"),
            ExpectedCase(f"{PATIENT}2", f"{PATIENT}2", (f"{PATIENT}2.nii",)),
            ExpectedCase(f"{PATIENT}3", f"{PATIENT}3", (f"{PATIENT}3.nii.gz",), f"{PATIENT}3.nii.gz"),
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
    ),
    "class_folders": LayoutExample(
        ClassFolders(),
        class_folders,
        [
            ExpectedCase(case, case, (file,), target=target, split=split)
            for case, file, target, split in (
                (f"test/benign/{PATIENT}3", f"{PATIENT}3.nii.gz", 0, "test"),
                (f"train/benign/{PATIENT}1", f"{PATIENT}1.nii.gz", 0, "train"),
                (f"test/malignant/{PATIENT}4", f"{PATIENT}4.nii", 1, "test"),
                (f"train/malignant/{PATIENT}2", f"{PATIENT}2.nii.gz", 1, "train"),
            )
        ],
        ("the layout names no patients: each case counts as a patient of its own",),
        ("benign", "malignant"),
    ),
    "dicom_tree": LayoutExample(
        DicomTree(),
        dicom_tree,
        [ExpectedCase(f"{PATIENT}/1.2.3", PATIENT, ("ct",))],
        left_out={"DICOM files (an image of a series of fewer than 5 slices, like a localizer)": 1},
    ),
}


@pytest.fixture(params=sorted(kinds("layouts")))
def example(request: pytest.FixtureRequest) -> LayoutExample:
    return EXAMPLES[request.param]


@checks_of(check_layout)
def test_it_keeps_the_contract(example: LayoutExample, check: str) -> None:
    run(check_layout, check, example)


def test_its_example_is_indexed_by_it_with_tokens(example: LayoutExample) -> None:
    with written(example) as folder:
        given = example.layout if example.given else None
        survey = Survey.of(folder)
        assert choose_layout(survey, given) == example.layout
        listing, index = example.layout.read(survey), index_folder(folder, site_secret=SECRET, layout=given)
    assert index.layout == listing.title
    assert [case.token for case in index.cases] == [case_token(SECRET, case.id) for case in listing.cases]


def test_layouts_are_listed_in_one_order() -> None:
    assert len({layout.order for layout in layouts()}) == len(layouts())


@pytest.mark.parametrize(
    ("where", "message"),
    [("", "case {}: no image"), ("cases.csv row 3", "cases.csv row 3 (case {}): no image")],
)
def test_the_index_names_the_case_of_a_layouts_error_by_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, message: str
) -> None:
    class Broken(Layout, tag="broken", frozen=True):
        def read(self, survey: Survey) -> CaseListing:
            raise CaseError(PATIENT, "no image", ImageError, where)

    monkeypatch.setattr(index_module, "choose_layout", lambda survey, given: Broken())
    with pytest.raises(ImageError, match="no image") as caught:
        index_folder(tmp_path, site_secret=SECRET)
    assert str(caught.value) == message.format(case_token(SECRET, PATIENT))
    assert type(caught.value) is ImageError


def test_a_case_error_hides_the_id() -> None:
    error = CaseError(PATIENT, "no image")
    assert PATIENT not in repr(error) + str(error)
    assert isinstance(error, DataError)
