"""The page of a preflight: its permissions and what it asks for."""

from __future__ import annotations

import re
import stat

from medfed.data.preflight.preflight import check
from medfed.data.preflight.report import page, write_page

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
