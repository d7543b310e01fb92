from __future__ import annotations

import pytest

from .exported_runs import CLASSIFY, SEGMENT, run_of


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(SEGMENT)
    return run_of(folder / "run", folder / "tiny.yaml")


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(CLASSIFY)
    return run_of(folder / "run", folder / "tiny.yaml")
