"""Folders of images that training refuses: one for each refusal there is, and what the study asks of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medfed.data.batch_needs import Needs
from medfed.data.own_data import OwnData
from medfed.data.settings import CaseTable, FindingWords, Images, Unreadable

from ..hospital_folder import MARK, folder_of, row, write_nifti
from ..itk_files import write_nrrd

CLASSES = ("background", "lesion")
SHAPE = (4, 4, 4)

# What fills an empty folder.
Fill = Callable[[Path], object]


@dataclass(frozen=True)
class BrokenImages:
    """A folder that a study cannot use; `changes` are those of `data`, whose images are as they are."""

    fill: Fill
    needs: Needs = "segment"
    classes: tuple[str, ...] = CLASSES
    own: OwnData | None = None
    bears: Unreadable | None = None
    batch: int = 1
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Images:
        return Images(**{"spacing_mm": "native", "patch": None, **self.changes})


def broken(fill: Fill, needs: Needs = "segment", **given: Any) -> BrokenImages:
    """Return a broken folder; what is no field of its record is a key of the study's `data`."""
    own = {key: given.pop(key) for key in ("classes", "own", "bears", "batch") if key in given}
    return BrokenImages(fill, needs, changes=given, **own)


def each(*fills: Fill) -> Fill:
    return lambda folder: [fill(folder) for fill in fills]


def touch(*names: str) -> Fill:
    """Files without content, whose endings say what they are: enough to be listed."""
    return lambda folder: [_written(folder / name, b"") for name in names]


def text(name: str, content: str) -> Fill:
    return lambda folder: _written(folder / name, content.encode())


def _written(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def nifti(*names: str, shape: tuple[int, ...] = SHAPE, label: bool = False) -> Fill:
    def fill(folder: Path) -> None:
        for number, name in enumerate(names):
            values = np.random.default_rng(number).normal(size=shape).astype(np.float32)
            write_nifti(folder / name, (values > 0).astype(np.uint8) if label else values)

    return fill


def pictures(*names: str) -> Fill:
    def fill(folder: Path) -> None:
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)).save(
                folder / name
            )

    return fill


def cases(heading: str, *rows: str) -> Fill:
    """A good folder of three cases, a, b and c, with another cases.csv."""

    def fill(folder: Path) -> None:
        made = folder_of(folder / "made", list(rows), heading)
        for path in made.iterdir():
            path.rename(folder / path.name)
        made.rmdir()
        made.parent.rmdir()

    return fill


def abc(**cells: str) -> list[str]:
    return [row(name, **cells) for name in "abc"]


HEADING = "case,patient,image,label,target,split"
GOOD = cases(HEADING, *abc())
FINDINGS = "case,patient,image,split,oedema,nodule"
WORDS = "case,patient,image,split,said"


def finding_rows(*cells: str) -> list[str]:
    return [
        f"{MARK}-{name},{MARK}{name},{MARK}_{name}.nii.gz,train,{cell}"
        for name, cell in zip("abc", cells, strict=True)
    ]


def beside(heading: str, *rows: str, name: str = "clinical.csv") -> Fill:
    return each(GOOD, text(name, "\n".join([heading, *rows]) + "\n"))


TABLE = CaseTable(features=("age",))
AGES = [f"{MARK}-{name},{age}" for name, age in zip("abc", (40, 50, 60), strict=True)]
DECATHLON = touch("imagesTr/p1.nii.gz", "labelsTr/p1.nii.gz", "imagesTr/p2.nii.gz", "labelsTr/p2.nii.gz")
AMOS = each(DECATHLON, touch("imagesVa/p3.nii.gz", "labelsVa/p3.nii.gz"))
BIDS = touch(
    *(f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in range(4)),
    *(f"derivatives/x/sub-{n}/anat/sub-{n}_T1w_dseg.nii.gz" for n in range(4)),
    "dataset_description.json",
)
BIDS_TARGET = {"kind": "bids", "target": "diagnosis"}


LABELS = {"labels": {"0": "background", "1": "lesion"}}


def described(content: object) -> Fill:
    return each(DECATHLON, text("dataset.json", json.dumps(content)))


def people(*lines: str) -> Fill:
    return each(BIDS, text("participants.tsv", "\n".join(lines).replace(",", "\t") + "\n"))


def dseg(name: str, *lines: str) -> Fill:
    return text(name, "\n".join(lines).replace(",", "\t") + "\n")


def pattern(image: object, label: str = "", **given: Any) -> dict[str, Any]:
    return {"layout": {"kind": "pattern", "image": image, "label": label}, **given}


CHANNELS = each(
    nifti(*(f"{kind}/p{n}.nii.gz" for kind in ("t1", "flair") for n in (1, 2))),
    nifti("seg/p1.nii.gz", "seg/p2.nii.gz", label=True),
)
CLASS_FOLDERS = pictures(*(f"{kind}/{kind[0]}{n}.png" for kind in ("healthy", "tumour") for n in range(10)))
PLANES = {"spatial_dims": 2, "spacing_mm": "fit", "patch": (8, 8)}
MASKS = {"images": "p1 p2", "labels/liver": "p1 p2"}

BROKEN_IMAGES: dict[str, BrokenImages] = {
    # the folder and its layout
    "no layout": broken(touch("a.nii.gz", "b.nii.gz")),
    "two layouts": broken(touch("images/p1.nii.gz", "labels/p1.nii.gz", "scans/p1.dcm")),
    "no case": broken(cases(HEADING)),
    "dataset.json is none": broken(each(DECATHLON, text("dataset.json", "{"))),
    "dataset.json without labels": broken(described({"modality": {"0": "CT"}})),
    "dataset.json with regions": broken(described({"labels": {"background": 0, "whole": [1, 2]}})),
    "dataset.json with a name twice": broken(described({"labels": {"a": 0, "b": 0}})),
    "dataset.json with channels that are none": broken(described({**LABELS, "channel_names": {"x": "T1"}})),
    "amos without a list": broken(
        each(AMOS, text("dataset.json", json.dumps({"labels": {"0": "background"}})))
    ),
    "amos without dataset.json": broken(AMOS, layout="amos"),
    "decathlon without dataset.json": broken(DECATHLON, layout="decathlon"),
    "cases_csv without cases.csv": broken(DECATHLON, layout="cases_csv"),
    "numbered and not": broken(
        touch("imagesTr/p1_0000.nii.gz", "imagesTr/p2.nii.gz", "labelsTr/p1.nii.gz"), layout="nnunet_raw"
    ),
    "one class": broken(touch("healthy/a.png"), "classify", layout="class_folders", **PLANES),
    "not paired": broken(touch("healthy/a.png"), layout="paired"),
    "no structures": broken(touch("healthy/a.png"), layout="structure_folders"),
    "two kinds of labels": broken(
        touch(*(f"p{n}/{kind}.nii.gz" for n in (1, 2) for kind in ("ct", "seg", "mask"))),
        layout="patient_folders",
    ),
    "no such channel": broken(
        touch(*(f"p{n}/{kind}.nii.gz" for n in (1, 2) for kind in ("t1", "seg"))),
        layout={"kind": "patient_folders", "channels": ["flair"]},
    ),
    "a pattern without image": broken(BIDS, **pattern("")),
    "a pattern with an unknown word": broken(BIDS, **pattern("{who}.nii.gz")),
    "patterns of other cases": broken(BIDS, **pattern("{patient}_t1.nii.gz", "{case}_seg.nii.gz")),
    "structures in an image": broken(BIDS, **pattern("{case}/{structure}.nii.gz")),
    "equal patterns": broken(touch("p1.nii.gz"), **pattern("{case}.nii.gz", "{case}.nii.gz")),
    "a pattern without a file": broken(touch("p1.nii.gz"), **pattern("{case}_t1.nii.gz")),
    "a case in two classes": broken(
        touch("x/p1_t1.nii.gz", "y/p1_t2.nii.gz", "seg/p1.nii.gz"),
        **pattern({"a": "{class}/{case}_t1.nii.gz", "b": "{class}/{case}_t2.nii.gz"}, "seg/{case}.nii.gz"),
    ),
    "a pattern's unknown split": broken(touch("later/p1.nii.gz"), **pattern("{split}/{case}.nii.gz")),
    "bids with two contrasts": broken(
        touch("sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_FLAIR.nii.gz", "dataset_description.json")
    ),
    "bids with equal channels": broken(BIDS, layout={"kind": "bids", "channels": {"a": "T1w", "b": "T1w"}}),
    "bids without participants.tsv": broken(BIDS, "classify", layout=BIDS_TARGET),
    "bids without participant_id": broken(people("who,diagnosis", "0,a"), "classify", layout=BIDS_TARGET),
    "a bids subject twice": broken(
        people("participant_id,diagnosis", "sub-0,a", "sub-0,b"), "classify", layout=BIDS_TARGET
    ),
    "bids without the target": broken(
        people("participant_id,age", "sub-0,4"), "classify", layout=BIDS_TARGET
    ),
    "a bids target that is none": broken(
        people("participant_id,diagnosis", *(f"sub-{n},{'abcd'[n]}" for n in range(4))),
        "classify",
        layout=BIDS_TARGET,
    ),
    "dseg.tsv without a name": broken(each(BIDS, dseg("dseg.tsv", "index,label", "1,liver"))),
    "dseg.tsv without a number": broken(each(BIDS, dseg("dseg.tsv", "index,name", "x,liver"))),
    "two dseg.tsv differ": broken(
        each(BIDS, dseg("dseg.tsv", "index,name", "1,a"), dseg("derivatives/dseg.tsv", "index,name", "1,b"))
    ),
    # channels
    "channels only counted": broken(CHANNELS, channels=2),
    "a channel lacking": broken(CHANNELS, channels=("t1", "adc")),
    "two channels of one name": broken(
        each(
            touch("imagesTr/p1_0000.nii.gz", "imagesTr/p1_0001.nii.gz", "labelsTr/p1.nii.gz"),
            text("dataset.json", json.dumps({**LABELS, "channel_names": {"0": "T1", "1": "T1 "}})),
        ),
        channels=("t1", "flair"),
    ),
    "channels in one file, in another order": broken(
        described({**LABELS, "modality": {"0": "FLAIR", "1": "T1"}}),
        channels=("t1", "flair"),
    ),
    # classes
    "labels name no class": broken(
        each(nifti("images/p1.nii.gz"), nifti("labels/spleen/p1.nii.gz", label=True)), classes=CLASSES
    ),
    "names in one label and numbers in the next": broken(
        each(
            nifti("images/p1.nii.gz", "images/p2.nii.gz"),
            nifti("labels/p1.nii.gz", label=True),
            lambda folder: write_nrrd(
                folder / "labels/p2.seg.nrrd",
                np.ones(SHAPE, np.uint8),
                np.eye(4),
                keys={"Segment0_Name": "lesion", "Segment0_LabelValue": "1", "Segment0_ID": "s"},
            ),
        ),
        classes=("background", "lesion", "cyst"),
    ),
    "folders are no class": broken(CLASS_FOLDERS, "classify", classes=("x", "y"), **PLANES),
    # findings
    "no column of a finding": broken(
        cases(FINDINGS, *finding_rows("1,0", "0,1", "1,1")), "multilabel", classes=("oedema", "mass")
    ),
    "no column of findings": broken(
        cases(FINDINGS, *finding_rows("1,0", "0,1", "1,1")),
        "multilabel",
        classes=("oedema",),
        findings=FindingWords(column="said"),
    ),
    "a finding that is no 0 or 1": broken(
        cases(FINDINGS, *finding_rows("1,0", "0,2", "1,1")), "multilabel", classes=("oedema", "nodule")
    ),
    "a word that is no finding": broken(
        cases(WORDS, *finding_rows("oedema", "cold", "oedema")),
        "multilabel",
        classes=("oedema",),
        findings=FindingWords(column="said"),
    ),
    "none beside a finding": broken(
        cases(WORDS, *finding_rows("oedema", f"oedema|{FindingWords(column='said').none}", "oedema")),
        "multilabel",
        classes=("oedema",),
        findings=FindingWords(column="said"),
    ),
    "no finding labelled": broken(
        cases(FINDINGS, *finding_rows(",", ",", ",")), "multilabel", classes=("oedema", "nodule")
    ),
    # the table beside the images
    "no table": broken(CLASS_FOLDERS, "classify", classes=("healthy", "tumour"), table=TABLE, **PLANES),
    "two tables": broken(
        each(beside("case,age", *AGES), text("clinical.tsv", "case\tage\n")), "classify", table=TABLE
    ),
    "the site's own table is not there": broken(GOOD, "classify", table=TABLE, own=OwnData("/nowhere.csv")),
    "the study's table is not there": broken(
        GOOD, "classify", table=CaseTable(features=("age",), file="labs.csv")
    ),
    "a table of nobody": broken(beside("age,weight", "40,50"), "classify", table=TABLE),
    "no column of the study's cases": broken(
        beside("case,age", *AGES), "classify", table=CaseTable(features=("age",), case="scan")
    ),
    "no column of the study's patients": broken(
        beside("who,age", *AGES), "classify", table=CaseTable(features=("age",), patient="subject key")
    ),
    "a table of others": broken(beside("case,age", "x,4"), "classify", table=TABLE),
    "every number is empty": broken(
        beside("case,age", *(f"{MARK}-{name}," for name in "abc")),
        "classify",
        table=CaseTable(features=("age",), missing="drop"),
    ),
    "cases without a row": broken(beside("case,age", *AGES[:1]), "classify", table=TABLE),
    "cases with two rows": broken(beside("case,age", *AGES, *AGES[1:]), "classify", table=TABLE),
    "rows of other patients": broken(
        beside("case,patient,age", *(line.replace(",", ",somebody,") for line in AGES)),
        "classify",
        table=TABLE,
    ),
    "rows that cannot be read": broken(
        beside("case,age", *(f"{MARK}-{name},old" for name in "abc")), "classify", table=TABLE
    ),
    # what is left, and sizes
    "no case may be left out": broken(
        each(GOOD, lambda folder: (folder / f"{MARK}_b.nii.gz").write_bytes(b"")),
        bears=Unreadable(skip=False),
    ),
    "none is left": broken(
        each(GOOD, lambda folder: [(folder / f"{MARK}_{n}.nii.gz").write_bytes(b"") for n in "abc"]),
        bears=Unreadable(max_share=1.0),
    ),
    "whole images of two sizes in a batch": broken(
        each(
            GOOD,
            nifti(f"{MARK}_b.nii.gz", shape=(8, 4, 4)),
            nifti(f"{MARK}_b_label.nii.gz", shape=(8, 4, 4), label=True),
        ),
        batch=2,
    ),
    "pictures beside images in mm": broken(
        each(
            cases(
                "case,image,target,split",
                *(
                    f"{MARK}-{name},{MARK}_{name},{n % 2},train"
                    for n, name in enumerate(("a.nii.gz", "b.png"))
                ),
            ),
            nifti(f"{MARK}_a.nii.gz", shape=(8, 8, 1)),
            pictures(f"{MARK}_b.png"),
        ),
        "classify",
        spatial_dims=2,
        patch=(8, 8),
    ),
}
