"""A folder as hospitals have it: what is no case is counted with a reason, and no name is said."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from data.hospital_folder import MARK, index
from data.layouts.dicom_folders import put
from hard_series import Series
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from medfed.cli import main
from medfed.data.case import Case, paths_of
from medfed.data.index import Index
from medfed.data.preflight.preflight import check

# By reason, what is left out of the folder that `messy` writes; counted there by hand.
LEFT_OUT = {
    "DICOM files (a DICOMDIR, which lists files and holds no image)": 1,
    "DICOM files (a localizer)": 6,
    "DICOM files (a structured report)": 1,
    "archives, which must be unpacked to be used": 1,
    "empty files that no case uses": 1,
    "other files that no case uses": 4,  # Thumbs.db, a report as PDF, a note, a lock file of Word
    "table files that no case uses": 1,
    "unfinished copies by their names (.part, ...), which must be copied again": 1,
    "hidden files": 2,
    "hidden folders, or folders of the system like a recycle bin, which are not looked into": 2,
    "empty folders": 2,
    "links to nothing": 1,
    "links to a folder in which they lie": 1,
}


def series(folder: Path, patient: str, **values: object) -> list[Path]:
    values = {"PatientID": f"{MARK}{patient}", "PatientName": f"{MARK}^{patient}"} | values
    values = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()} | values
    return put(folder, Series(), **values)


def write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Write the data of patients 1 to 5: patient 1 twice, 2 with a copied folder, 3 cut, 4 over a link."""
    folder, store = tmp_path / f"{MARK}_data", tmp_path / "store"
    first = series(folder / f"{MARK}1" / "ct", "1")
    series(folder / "export 2" / "anon", "1")
    series(folder / f"{MARK}1" / "scout", "1", ImageType=["DERIVED", "PRIMARY", "LOCALIZER"])
    second = series(folder / f"{MARK}2" / "ct", "2")
    shutil.copytree(second[0].parent, folder / f"{MARK}2" / "ct - Copy")
    third = series(folder / f"{MARK}3", "3")
    third[2].write_bytes(third[2].read_bytes()[:-20])
    series(store / "4", "4")
    os.symlink(store / "4", folder / f"{MARK}4")
    with zipfile.ZipFile(folder / f"{MARK}5.zip", "w") as archive:
        archive.write(first[0], "1.dcm")
    files = FileSet()
    files.write(folder)  # a DICOMDIR
    text = {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}
    report = put(tmp_path / "sr", Series(shape=(1, 5, 7)), **text)
    report[0].rename(folder / f"{MARK}1" / "report.dcm")
    write(folder / "Thumbs.db")
    write(folder / f"{MARK}1" / f"{MARK}_Anna.pdf", b"%PDF-1.7")
    write(folder / "notes.txt", f"{MARK} Anna, born 1901-02-03".encode())
    write(folder / f"~${MARK}.docx")
    write(folder / "patients.csv", f"{MARK} Anna,1901-02-03\n".encode())
    write(folder / "empty.txt", b"")
    write(folder / f"{MARK}2" / "ct.nii.gz.part", b"\x1f\x8b")
    write(folder / ".DS_Store")
    write(folder / f"{MARK}1" / "._ct")
    write(folder / ".Trash-1000" / "1.dcm", first[1].read_bytes())
    write(folder / "@eaDir" / "thumb.jpg")
    (folder / f"{MARK}6" / "ct").mkdir(parents=True)
    (folder / f"{MARK}7").mkdir()
    os.symlink(tmp_path / "gone", folder / f"{MARK}8")
    os.symlink(folder, folder / f"{MARK}1" / "all")
    return folder


def files_of(case: Case) -> Iterator[Path]:
    for source in case.image:
        for path in paths_of(source):
            yield from (path.iterdir() if path.is_dir() else [path])


def test_each_entry_is_of_a_case_or_counted_with_its_reason(messy: Path) -> None:
    indexed: Index = index(messy)
    assert indexed.left_out == LEFT_OUT
    used = [path for case in indexed.cases for path in files_of(case)]
    left_out = [path for paths in indexed.left_out_files.values() for path in paths]
    # An independent walk: os.walk follows no link, patient 4 lies behind one.
    walked = [Path(parent, name) for parent, _, names in os.walk(messy) for name in names]
    system = {".Trash-1000", "@eaDir"}
    seen = [path for path in walked if not system & set(path.parts) and path.name[0] != "."]
    seen = [path for path in seen if path.exists()] + list((messy / f"{MARK}4").iterdir())
    assert sorted(used + left_out) == sorted(seen)
    assert len(used) == 6 * 6  # patients 1, 1, 2, 2 again, 3 and 4


def test_two_exports_of_a_patient_are_in_one_split_and_a_copied_series_is_one_case(messy: Path) -> None:
    cases = index(messy).cases
    assert sorted(case.patient for case in cases) == [f"{MARK}{n}" for n in (1, 1, 2, 3, 4)]
    first = [case for case in cases if case.patient == f"{MARK}1"]
    assert len({case.split for case in first}) == 1


def test_check_counts_refuses_the_cut_series_and_names_nobody(messy: Path) -> None:
    result = check(messy, site_secret=b"s" * 32, processes=1)
    assert [facts.read for _, facts in result.cases].count(False) == 1
    said = CliRunner().invoke(main, ["check", str(messy)]).output.replace(str(messy), "")
    for reason, count in LEFT_OUT.items():
        assert f"{count} {reason}" in " ".join(said.split())
    assert MARK.lower() not in said.lower()
    assert "Anna" not in said
    assert "1901" not in said
