"""`medfed new` proposes a table beside the images only where training takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medfed.pipeline._draft_case_table import case_table_lines
from medfed.pipeline.drafting import draft_study

MARK = "Meier"


def hospital(folder: Path, name: str) -> Path:
    """Write 16 pictures in two folders of classes, and a table whose ids are `name` and a number."""
    rows = ["mrn,age,sex"]
    for number in range(16):
        picture = folder / ("healthy" if number % 2 else "tumour") / f"{MARK}{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + np.uint8(number)).save(picture)
        rows.append(f"{name}{number},{40 + number},{'FM'[number % 2]}")
    (folder / "clinical.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_table_whose_rows_name_the_pictures_is_proposed(tmp_path: Path) -> None:
    folders = {site: hospital(tmp_path / site, MARK) for site in ("north", "south")}
    lines, warnings = case_table_lines(folders, ())
    assert "features: [age, sex]" in lines
    assert warnings == [
        "column 'mrn' was left out, and keeps a patient's rows in one split: it holds ids of patients"
    ]


def test_the_draft_of_a_study_has_the_section(tmp_path: Path) -> None:
    folders = {site: hospital(tmp_path / site, MARK) for site in ("north", "south")}
    draft = draft_study("study", folders, {})
    assert "table:" in draft.text
    assert "features: [age, sex]" in draft.text


def test_a_table_whose_rows_name_no_case_at_one_hospital_is_not(tmp_path: Path) -> None:
    folders = {"north": hospital(tmp_path / "north", MARK), "south": hospital(tmp_path / "south", "other")}
    lines, warnings = case_table_lines(folders, ())
    assert lines == ""
    assert warnings[0].startswith(
        "south: the site's table beside the images has 16 rows, and none names one of the folder's 16 cases"
    )
    assert warnings[1:] == ["so no table beside the images is proposed"]
    assert MARK not in "".join(warnings)
