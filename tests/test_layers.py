"""The design's import contracts hold, and each of them catches a violation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = Path(sys.executable).parent / "lint-imports"

pytestmark = pytest.mark.slow


def lint(folder: Path) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [LINT, "--config", "pyproject.toml", "--no-cache"],
        cwd=folder, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "medfed", tmp_path / "medfed", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout


BREACHES = {
    "Rooms point downward": ("wire/weights.py", "from medfed.federation import hub"),
    "No circle between files of a room": ("runs/rounds.py", "from medfed.runs import progress"),
    "Code that reads images cannot reach the wire": ("data/volume.py", "import socket"),
    "What reaches the wire cannot read images": ("federation/round.py", "import nibabel"),
    "Lightning is only where training is": ("federation/hub.py", "import pytorch_lightning"),
    "Data and models stand beside the layers": (
        "models/tasks/segment.py",
        "from medfed.wire import encoding",
    ),
}


@pytest.mark.parametrize("contract", BREACHES)
def test_a_breach_is_seen(copy, contract):
    file, line = BREACHES[contract]
    path = copy / "medfed" / file
    path.write_text(path.read_text() + f"\n{line}  # noqa\n")
    done = lint(copy)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout
