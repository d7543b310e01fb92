"""The page of a preflight: its permissions and what it asks for."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from medfed.data.preflight.preflight import check
from medfed.data.preflight.report import fact_lines, page, write_page

from ..hospital_folder import write_nifti
from .conftest import Hospital

SECRET = b"0123456789abcdef" * 2


def test_the_page_is_for_its_owner_alone_and_asks_for_nothing_from_outside(
    hospital: Hospital, tmp_path
) -> None:
    for _ in range(3):
        hospital.add()
    preflight = check(hospital.write(), site_secret=SECRET, processes=1, thumbnails=True)
    path = tmp_path / "page.html"
    path.write_text("was readable")
    path.chmod(0o644)
    write_page(preflight, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = page(preflight)
    assert text.count("data:image/png;base64,") == 3
    assert not re.search(r"(?:src|href)=\"(?!data:)|<script|https?://", text)


def test_images_without_a_size_in_mm_are_counted(tmp_path) -> None:
    (tmp_path / "cases.csv").write_text("case,image,target\na,a.png,0\nb,b.nii,1\n")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(8, 8, 1), np.eye(4)).to_filename(tmp_path / "b.nii")
    lines = dict(fact_lines(check(tmp_path, site_secret=SECRET, processes=1).facts))
    assert lines["size in mm"] == "1 of 2 images have none; a pixel counts as 1 mm above"
    assert lines["spacing, mm"] == "1.00 x 1.00 x 1.00, all the same"


def test_names_of_channels_are_shown_in_their_order_if_they_are_words_of_the_field(tmp_path: Path) -> None:
    for name in ("t1", "flair"):
        for number in range(2):
            write_nifti(tmp_path / name / f"p{number}.nii.gz", np.ones((4, 4, 4), np.float32))
    for number in range(2):
        write_nifti(tmp_path / "seg" / f"p{number}.nii.gz", np.ones((4, 4, 4), np.uint8))
    lines = dict(fact_lines(check(tmp_path, processes=1).facts))
    assert lines["channel names"] == "flair, t1, in this order"
    (tmp_path / "t1").rename(tmp_path / "Meier")
    assert "channel names" not in dict(fact_lines(check(tmp_path, processes=1).facts))
