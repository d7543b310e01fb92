"""Several findings per image from columns of 1, 0 and nothing, or from a column of words."""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np
import pytest

from medfed.data.case import Case
from medfed.data.class_names import ClassNames
from medfed.data.datamodule import SiteDataModule
from medfed.data.findings import binary_columns, findings_of, read_findings
from medfed.data.settings import FindingWords, Images
from medfed.errors import DataError

from .hospital_folder import MARK, NATIVE, SECRET, write_nifti

NAN = math.nan
NAMES = ("Effusion", "Nodule")
WORDS = FindingWords(column="Reading", ignored=("scar",))


def case(token: str = "t1", **attributes: str) -> Case:
    return Case(id=token, patient=token, token=token, image=(), attributes=MappingProxyType(attributes))


@pytest.mark.parametrize(
    ("effusion", "nodule", "expected"),
    [("1", "0", (1, 0)), ("1.0", "", (1, NAN)), ("n/a", "0.0", (NAN, 0)), ("", "", (NAN, NAN))],
)
def test_a_cell_says_present_absent_or_not_labelled(effusion, nodule, expected) -> None:
    findings = findings_of(case(effusion=effusion, nodule=nodule), NAMES, None)
    assert findings == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("cell", ["-1", "2", "0.5", MARK, "nan0", "inf"])
def test_another_cell_is_refused_without_being_shown(cell) -> None:
    with pytest.raises(DataError, match="case t1: the column 'Effusion' is neither 1") as caught:
        findings_of(case(effusion=cell, nodule="0"), NAMES, None)
    assert MARK not in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("effusion", (1, 0)),
        ("Nodule | effusion", (1, 1)),
        ("No Finding", (0, 0)),
        ("scar", (0, 0)),
        ("scar|nodule", (0, 1)),
        ("", (NAN, NAN)),
    ],
)
def test_a_column_of_words_names_what_is_present(cell, expected) -> None:
    assert findings_of(case(reading=cell), NAMES, WORDS) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (f"effusion|{MARK}", "the column 'Reading' has 1 words that are no finding of the study"),
        ("effusions", "the column 'Reading' has 1 words"),
        ("no finding|nodule", "the column 'Reading' says 'no finding' beside a finding"),
        ("|", "the column 'Reading' has 0 words"),
    ],
)
def test_a_word_that_is_not_known_is_refused_without_being_shown(cell, message) -> None:
    with pytest.raises(DataError, match=f"case t1: {message}") as caught:
        findings_of(case(reading=cell), NAMES, WORDS)
    assert MARK not in str(caught.value)


def test_a_column_that_is_not_there_is_refused_and_the_nearest_one_named() -> None:
    with pytest.raises(DataError, match="no column 'Nodule', which the study predicts; is it 'nodules'"):
        read_findings([case(effusion="1", nodules="1")], NAMES, None)
    with pytest.raises(DataError, match=r"no column 'Reading' \(data.findings.column\)"):
        read_findings([case(effusion="1")], NAMES, WORDS)


def test_a_case_without_any_labelled_finding_is_left_out() -> None:
    findings = read_findings(
        [case("a", effusion="", nodule=""), case("b", effusion="1", nodule="")], NAMES, None
    )
    assert list(findings) == ["b"]


def test_columns_of_findings_hold_both_numbers_and_nothing_else() -> None:
    cells = {"both": ("1", "0.0"), "one": ("1", ""), "three": ("1", "2"), "word": ("0", "x")}
    cases = [case(f"t{i}", **{name: pair[i] for name, pair in cells.items()}) for i in range(2)]
    assert binary_columns([*cases, case("t3", both="", one="0")]) == ["both", "one"]


def hospital(tmp_path, lines: list[str], settings: Images = NATIVE) -> SiteDataModule:
    for name in "abc":
        write_nifti(tmp_path / f"{name}.nii.gz", np.zeros((4, 4, 4), np.float32))
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,Effusion,Nodule,split", *lines]))
    return SiteDataModule.open(
        tmp_path, settings, "multilabel", site_secret=SECRET, classes=ClassNames(NAMES), batch=3
    )


def test_a_batch_holds_every_finding_and_what_was_not_labelled(tmp_path) -> None:
    data = hospital(tmp_path, ["a,a.nii.gz,1,0,train", "b,b.nii.gz,,1,train", "c,c.nii.gz,,,train"])
    assert data.notes[1:] == (
        "1 cases have no labelled finding and are left out",
        "'Effusion' is in each of the site's training cases",
    )
    batch = next(iter(data.train_dataloader()))
    order = np.argsort([data.case(token).id for token in batch["case"]])
    assert batch["target"].dtype.is_floating_point
    np.testing.assert_array_equal(batch["target"].numpy()[order], [[1, 0], [NAN, 1]])


def test_a_site_without_any_labelled_finding_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="no case of the site has a labelled finding, which the task needs"):
        hospital(tmp_path, ["a,a.nii.gz,,,train"])
