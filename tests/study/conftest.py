from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = """\
name: small
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet}
data: {kind: images}
train:
  rounds: 3
  optimiser: {kind: adamw, lr: 1e-3}
sites:
  north: data/north
  south: ../south
"""


@pytest.fixture
def study_text() -> str:
    return STUDY


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = STUDY) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write
