from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import pytest
import torch

from medfed.exchange._update_store import store
from medfed.wire.encoding import update_pieces
from medfed.wire.update import Update
from medfed.wire.weights import Difference

WEIGHTS = {"w": torch.zeros(4)}


@pytest.fixture
def pieces():
    update = Update("north", 1, Difference({"w": torch.arange(4.0)}, WEIGHTS), 7, {"val/dice": 0.5})
    return list(update_pieces(update, "study"))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_an_update_comes_back_from_memory_and_from_a_file(pieces, memory_bytes):
    stored = store(pieces, memory_bytes)
    assert stored.size == len(b"".join(pieces))
    assert stored.in_memory == (stored.size if memory_bytes else 0)
    for _ in range(2):
        update = stored.decode(WEIGHTS, "study")
        assert (update.site, update.examples, dict(update.scalars)) == ("north", 7, {"val/dice": 0.5})
        assert update.delta["w"].tolist() == [0, 1, 2, 3]


def test_a_file_is_its_owners_alone_and_goes_with_the_update(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored = store(pieces, 0)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    update = stored.decode(WEIGHTS, "study")
    del stored
    gc.collect()
    assert not list(Path(tmp_path).iterdir())
    assert update.delta["w"].tolist() == [0, 1, 2, 3]  # the open file is still read
