"""`medfed check` says error exactly where training refuses, in the same words, over every broken folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfed.data.batch_needs import Needs
from medfed.data.class_names import ClassNames
from medfed.data.datamodule import SiteDataModule
from medfed.data.preflight.preflight import check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.settings import Images, Unreadable
from medfed.errors import DataError

from ..hospital_folder import MARK, SECRET, folder_of, row, write_nifti

CLASSES = ("background", "lesion")
HEADING = "case,patient,image,label,target,split"

# What is done to a folder of three good cases; the study is a segmentation unless the name says otherwise.
Break = Callable[[Path], object]


def image(folder: Path, name: str = "b") -> Path:
    return folder / f"{MARK}_{name}.nii.gz"


def label(folder: Path, name: str = "b") -> Path:
    return folder / f"{MARK}_{name}_label.nii.gz"


def table(*lines: str, heading: str = HEADING) -> Break:
    text = "\n".join([heading, *lines]) + "\n"
    return lambda folder: (folder / "cases.csv").write_text(text, encoding="utf-8")


def each(*parts: Break) -> Break:
    return lambda folder: [part(folder) for part in parts]


def cut(path: Callable[..., Path], name: str) -> Break:
    return lambda folder: path(folder, name).write_bytes(path(folder, name).read_bytes()[:60])


def save(path: Callable[..., Path], name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Break:
    return lambda folder: write_nifti(path(folder, name), array, affine)


SHAPE = (6, 5, 4)
TWO = ("b", "c")
REFUSED: dict[str, Break] = {
    "image: two images cut": each(*(cut(image, n) for n in TWO)),
    "two images missing": each(*(lambda f, n=n: image(f, n).unlink() for n in TWO)),
    "two labels missing": each(*(lambda f, n=n: label(f, n).unlink() for n in TWO)),
    "an image and a label missing": each(lambda f: image(f).unlink(), lambda f: label(f, "c").unlink()),
    "two images cut": each(*(cut(image, n) for n in TWO)),
    "two labels cut": each(*(cut(label, n) for n in TWO)),
    "two empty images": each(*(lambda f, n=n: image(f, n).write_bytes(b"") for n in TWO)),
    "two empty labels": each(*(lambda f, n=n: label(f, n).write_bytes(b"") for n in TWO)),
    "two images that are none": each(*(lambda f, n=n: image(f, n).write_bytes(b"x" * 999) for n in TWO)),
    "two labels that are none": each(*(lambda f, n=n: label(f, n).write_bytes(b"x" * 999) for n in TWO)),
    "two labels of another size": each(*(save(label, n, np.zeros((6, 5, 3), np.uint8)) for n in TWO)),
    "two labels elsewhere": each(
        *(save(label, n, np.zeros(SHAPE, np.uint8), np.diag([2.0, 1, 1, 1])) for n in TWO)
    ),
    "two labels with another class": each(*(save(label, n, np.full(SHAPE, 9, np.uint8)) for n in TWO)),
    "two labels that are no classes": each(*(save(label, n, np.full(SHAPE, 0.5, np.float32)) for n in TWO)),
    "two labels of nan": each(*(save(label, n, np.full(SHAPE, np.nan, np.float32)) for n in TWO)),
    "two images of two channels": each(*(save(image, n, np.zeros((*SHAPE, 2), np.float32)) for n in TWO)),
    "two images of nan": each(*(save(image, n, np.full(SHAPE, np.nan, np.float32)) for n in TWO)),
    "two images that become too large": each(
        *(
            save(part, n, np.ones(SHAPE, np.float32), np.diag([9e3, 9e3, 9e3, 1]))
            for n in TWO
            for part in (image, label)
        )
    ),
    "no case": table(),
    "no table and no image": lambda folder: [path.unlink() for path in folder.iterdir()],
    "an empty table": lambda folder: (folder / "cases.csv").write_text(""),
    "a table of zero bytes": lambda folder: (folder / "cases.csv").write_bytes(b"\0" * 40),
    "no column image": table(f"{MARK},x", heading="case,picture"),
    "a column twice": table(f"{MARK},x,y", heading="case,image,image"),
    "a row too short": table(row("a"), f"{MARK}-b,{MARK}"),
    "a quote that is not closed": table(row("a"), f'"{MARK}-b,{MARK}'),
    "a case twice": table(row("a"), row("b"), row("a", image=f"{MARK}_c.nii.gz")),
    "a case without an id": table(row("a"), row("b").replace(f"{MARK}-b", "", 1)),
    "a row without an image": table(row("a"), row("b").replace(f"{MARK}_b.nii.gz", "", 1)),
    "an unknown split": table(row("a"), row("b", split="nowhere")),
    "a patient in two splits": table(row("a", patient=MARK), row("b", patient=MARK, split="test")),
    "a target that is no number": table(row("a"), row("b", target=MARK)),
    "a target below zero": table(row("a"), row("b", target="-1")),
    "no training case": table(row("a", split="val"), row("b", split="test")),
    "no label": table(*(f"{MARK}-{n},{MARK}{n},{MARK}_{n}.nii.gz,,1,train" for n in "abc")),
    "the only training case is cut": each(
        table(row("a"), row("b", split="val"), row("c", split="test")), cut(image, "a")
    ),
    "classify: a target that is no class": table(row("a"), row("b", target="7")),
    "classify: no target": table(
        *(f"{MARK}-{n},{MARK}{n},{MARK}_{n}.nii.gz,train" for n in "abc"), heading="case,patient,image,split"
    ),
    "classify: two images cut": each(*(cut(image, n) for n in TWO)),
    "table: a study of a table": lambda folder: None,
}
TAKEN: dict[str, Break] = {
    "a good folder": lambda folder: None,
    "one image missing": lambda folder: image(folder).unlink(),
    "one image cut": cut(image, "b"),
    "one label missing": lambda folder: label(folder).unlink(),
    "one label with another class": save(label, "b", np.full(SHAPE, 9, np.uint8)),
    "one image of two channels": save(image, "b", np.zeros((*SHAPE, 2), np.float32)),
    "constant images": each(*(save(image, n, np.full(SHAPE, 7, np.float32)) for n in TWO)),
    "an empty label": save(label, "b", np.zeros(SHAPE, np.uint8)),
    "the same image in two splits": each(
        table(row("a"), row("b", split="test"), row("c", split="val")),
        lambda folder: image(folder).write_bytes(image(folder, "a").read_bytes()),
    ),
    "a case without a label": table(row("a"), row("b"), f"{MARK}-c,{MARK}c,{MARK}_c.nii.gz,,1,train"),
    "classify: two labels cut": each(*(cut(label, n) for n in TWO)),
    "image: two labels cut": each(*(cut(label, n) for n in TWO)),
    "image: two labels missing": each(*(lambda f, n=n: label(f, n).unlink() for n in TWO)),
    "image: no labels": table(
        *(f"{MARK}-{n},{MARK}{n},{MARK}_{n}.nii.gz,train" for n in "abc"), heading="case,patient,image,split"
    ),
    "classify: two labels missing": each(*(lambda f, n=n: label(f, n).unlink() for n in TWO)),
}


def verdicts(tmp_path: Path, name: str, breaks: Break) -> tuple[str, list[str], str]:
    """Return training's refusal ('' if it takes the folder), the errors of `check`, and its verdict."""
    needs: Needs = "classify" if name.startswith("classify") else "segment"
    needs = "table" if name.startswith("table") else "image" if name.startswith("image") else needs
    folder = folder_of(tmp_path, [row("a"), row("b"), row("c")])
    breaks(folder)
    settings = Images(spacing_mm=(1, 1, 1), patch=None)
    refusal = ""
    try:
        data = SiteDataModule.open(folder, settings, needs, site_secret=SECRET, classes=ClassNames(CLASSES))
        data.leave_out(data.screen(), Unreadable())
        data.require_training_cases()
    except DataError as error:
        refusal = str(error)
    requirements = StudyRequirements("study", settings, needs, CLASSES)
    preflight = check(folder, site_secret=SECRET, requirements=requirements, processes=1)
    told = [
        detail for problem in preflight.problems if problem.severity == "error" for _, detail in problem.cases
    ]
    text = (
        repr([(problem.title, problem.cases) for problem in preflight.problems]) + preflight.verdict + refusal
    )
    assert MARK.lower() not in text.lower(), text
    assert str(tmp_path) not in text
    return refusal, told, preflight.verdict


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_check_calls_an_error_in_the_same_words(tmp_path: Path, name: str) -> None:
    refusal, told, verdict = verdicts(tmp_path, name, REFUSED[name])
    assert refusal, "training takes it"
    assert any(detail and detail in refusal for detail in told), (refusal, told)
    assert "can't take part" in verdict or "no case" in verdict


@pytest.mark.parametrize("name", TAKEN)
def test_what_training_takes_check_takes(tmp_path: Path, name: str) -> None:
    refusal, told, verdict = verdicts(tmp_path, name, TAKEN[name])
    assert (refusal, told) == ("", [])
    assert verdict.startswith("This hospital can take part in 'study' with ")


def test_there_are_many_kinds() -> None:
    assert len(REFUSED) >= 30
