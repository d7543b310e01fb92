"""Folders and tables that the index refuses are listed nevertheless."""

from __future__ import annotations

import re
import shutil

from medfed.data.preflight.preflight import Preflight, check

from .conftest import Hospital

SECRET = b"0123456789abcdef" * 2


def rows(found: Preflight, code: str) -> set[int]:
    """The rows that a problem names."""
    names = [name for problem in found.problems if problem.code == code for name, _ in problem.cases]
    return {int(re.match(r"row (\d+) \([0-9a-f]{12}\)$", name)[1]) for name in names}


def codes(found: Preflight) -> set[str]:
    return {problem.code for problem in found.problems}


def test_a_broken_table_still_lets_the_other_rows_be_checked(hospital: Hospital) -> None:
    hospital.add()
    gone = hospital.add()
    odd = hospital.add(split="somewhere")
    again = hospital.add()
    hospital.rows[again - 2]["case"] = hospital.rows[0]["case"]
    last = hospital.add(spoil="image")
    folder = hospital.write()
    (folder / hospital.rows[gone - 2]["image"]).unlink()
    with (folder / "cases.csv").open("a") as file:
        file.write("too,few\n")
    preflight = check(folder, site_secret=SECRET, processes=1)
    assert rows(preflight, "missing_file") == {gone}
    told = {name.split(" (")[0] for p in preflight.problems if p.code == "row" for name, _ in p.cases}
    assert told == {f"row {odd}", f"row {again}", f"row {last + 1}"}
    assert rows(preflight, "corrupt") == {last}


def test_a_folder_of_no_known_layout_is_an_error_and_its_images_are_still_read(
    hospital: Hospital, tmp_path
) -> None:
    hospital.add()
    hospital.add(spoil="image")
    folder = hospital.write()
    flat = tmp_path / "flat"
    shutil.copytree(folder / "images", flat)
    preflight = check(flat, site_secret=SECRET, processes=1)
    assert {"folder", "corrupt"} <= codes(preflight)
    assert preflight.facts["read"] == 1
