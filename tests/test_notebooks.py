"""The notebooks in docs/ run from top to bottom on the sample data, and are stored without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient runs the notebooks; install medfed[dev]")
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebooks; install medfed[dev]")
    pytest.importorskip("ipykernel", reason="a notebook needs a kernel; install medfed[dev]")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for folder in ("sample_data", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = nbclient.NotebookClient(
        nbformat.read(path, as_version=4), timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    # Training drew its table in one output that was updated, in HTML.
    pages = [
        output["data"]["text/html"]
        for cell in done.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert any("round 3 of 3" in page or "round 8 of 8" in page for page in pages)
