"""A file stays readable as long as one of its tensors may be read, and others can ask whether it is."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medfed.errors import WireError
from medfed.wire.open_file import OpenFile, may_be_read


def written(path: Path) -> Path:
    save_file({"a": torch.arange(4, dtype=torch.uint8)}, path)
    return path


def test_a_tensor_is_read_after_its_file_was_removed(tmp_path: Path) -> None:
    path = written(tmp_path / "model")
    file = OpenFile(path)
    path.unlink()
    assert file.read("a", 1, 3).tolist() == [1, 2]


def test_a_file_may_be_read_until_the_last_of_its_readers_is_gone(tmp_path: Path) -> None:
    path, other = written(tmp_path / "model"), written(tmp_path / "other")
    first, second = OpenFile(path), OpenFile(path)
    assert (may_be_read(path), may_be_read(other)) == (True, False)
    del first
    gc.collect()
    assert may_be_read(path)
    # Another file at its place is not the one that is read.
    second_path = path.rename(tmp_path / "moved")
    assert (may_be_read(written(path)), may_be_read(second_path)) == (False, True)
    del second
    gc.collect()
    assert not may_be_read(second_path)


def test_a_file_may_be_opened_while_another_thread_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, more = written(tmp_path / "model"), []
    kept = [OpenFile(path), OpenFile(path)]

    def opens_another(self: OpenFile, asked: Path) -> bool:
        more.append(OpenFile(path))
        return False

    monkeypatch.setattr(OpenFile, "is_at", opens_another)
    assert not may_be_read(tmp_path / "other")
    assert len(more) >= len(kept)


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "model")
    file = OpenFile(path)
    with path.open("r+b") as shortened:
        shortened.truncate(path.stat().st_size - 2)
    with pytest.raises(WireError, match="'a' is truncated: the file became shorter after it was checked"):
        file.read("a", 0, 4)
