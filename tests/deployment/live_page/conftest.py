"""One run folder for all tests that only look at it."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployment.live_page.runs import make_run


@pytest.fixture(scope="session")
def shown_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("page") / "lungs")
