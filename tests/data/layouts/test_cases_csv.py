"""A table cases.csv: all columns, several channels, and rows that are refused by token and row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfed.data.datamodule import SiteDataModule
from medfed.data.index import index_folder
from medfed.data.screening import usable_cases
from medfed.data.settings import Images
from medfed.errors import DataError

from ..hospital_folder import (
    MARK,
    NATIVE,
    SECRET,
    folder_of,
    index,
    refused,
    row,
    token,
    unreadable,
    write_nifti,
)


def test_cases_csv_says_it_all(tmp_path: Path) -> None:
    rows = [
        row("a", split="val") + ",63,old scanner",
        row("b", target="0") + ",64,",
        row("c", split="test") + ",65,new",
    ]
    indexed = index(folder_of(tmp_path, rows, "case,patient,image,label,target,split,age,scanner"))
    first = indexed.cases[0]
    assert (first.id, first.patient, first.target, first.split) == (f"{MARK}-a", f"{MARK}a", 1, "val")
    assert first.attributes == {"age": "63", "scanner": "old scanner"}
    assert [path.name for path in first.image] == [f"{MARK}_a.nii.gz"]
    assert [case.split for case in indexed.cases] == ["val", "train", "test"]
    assert (
        indexed.describe()
        == "cases.csv: 3 cases of 3 patients (1 train, 1 val, 1 test), 3 with a label, 3 with a target"
    )


def test_several_channels_are_several_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", image=f"{MARK}_a.nii.gz|{MARK}_b.nii.gz")])
    data = SiteDataModule(
        index(folder), Images(spacing_mm="native", patch=None, channels=2), "segment", classes=2
    )
    image = data.dataset("train")[0]["image"]
    assert tuple(image.shape) == (2, 6, 5, 4)
    assert not np.allclose(image[0], image[1])


def test_a_table_without_rows(tmp_path: Path) -> None:
    refused(lambda: index(folder_of(tmp_path, [])), DataError, "no case")


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_missing_file_costs_its_case_only(tmp_path: Path, what: str) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", **{what: f"{MARK}_gone.nii.gz"})])
    data = SiteDataModule(index(folder), NATIVE, "segment", classes=2)
    assert data.examples == 2
    (one,) = data.screen().refused
    assert (one.case.token, one.reason) == (token("b"), f"{what} missing")
    assert one.message.startswith(f"case {token('b')}: its {what} is not there; correct its path")


def test_a_duplicate_case(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b"), row("a", image=f"{MARK}_c.nii.gz")])
    refused(lambda: index(folder), DataError, "row 4", "as row 2", token("a"), "id of its own")


@pytest.mark.parametrize("empty", ["", "NA", "n/a"])
def test_a_case_without_a_class_is_a_case_without_a_class(tmp_path: Path, empty: str) -> None:
    """An empty column 'target' refused a folder whose labels are to be segmented."""
    for name in ("a", "b", "l"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.zeros((3, 3, 3), np.uint8))
    rows = ("case,image,label,target", f"a,a.nii.gz,l.nii.gz,{empty}", "b,b.nii.gz,l.nii.gz,1")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    result = index_folder(tmp_path, site_secret=SECRET)
    assert [case.target for case in result.cases] == [None, 1]
    cases, notes = usable_cases(result, "classify", 2)
    assert ([case.id for case in cases], notes) == (["b"], ("1 cases have no target and are left out",))
    assert len(usable_cases(result, "segment", 2)[0]) == 2


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_cell_that_cannot_be_a_path_costs_its_case_alone(tmp_path: Path, column: str) -> None:
    rows = [row("a"), row("b", **{column: f"{MARK}" * 1000 + ".nii.gz"}), row("c")]
    told = unreadable(index(folder_of(tmp_path, rows)))
    assert list(told) == ["-b"]
    assert told["-b"].startswith(f"its {column} is not there")


def test_a_path_may_be_written_as_windows_or_a_mac_would(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("M\u00fcller", "Bo\u0308hm", "x\\y"):
        (tmp_path / "scans" / f"{name}.png").touch()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y.png").touch()
    (tmp_path / "x\\y.png").touch()
    cells = ("scans\\Mu\u0308ller.png", "scans/B\u00f6hm.png", "x\\y.png")
    rows = [f"{number},{cell},0" for number, cell in enumerate(cells)]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,target", *rows]), encoding="utf-8")
    paths = [str(case.image[0].relative_to(tmp_path)) for case in index(tmp_path).cases]
    # What is there as it is written goes before what it may mean.
    assert paths == ["scans/M\u00fcller.png", "scans/Bo\u0308hm.png", "x\\y.png"]
