"""Fixtures that several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hospitals import make_hospital, write_study


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Return the folder with the tiny hospitals and their study, tiny.yaml."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("north", "south", "west"):
        make_hospital(folder / name)
    write_study(folder)
    return folder
