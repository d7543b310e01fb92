"""The model that a site began with: read as it was written, refused once a disk has changed it."""

from __future__ import annotations

import pytest
import torch

from medfed.errors import RunError
from medfed.federation.first_model import load_first_model, save_first_model

WEIGHTS = {"weight": torch.tensor([[1.0, -2.0]]), "phase": torch.tensor([1 + 2j])}
METADATA = {"round": "3", "model": "ab" * 32, "seed": "cd"}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "first.safetensors"
    save_first_model(path, WEIGHTS, METADATA)
    weights, metadata = load_first_model(path, "north")
    assert weights["weight"].tolist() == [[1.0, -2.0]]
    assert weights["phase"].tolist() == [[1.0, 2.0]]
    assert metadata == METADATA


def test_no_bit_of_it_changes_without_a_word(tmp_path):
    path = tmp_path / "first.safetensors"
    save_first_model(path, WEIGHTS, METADATA)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            weights, metadata = load_first_model(path, "north")
        except RunError as error:
            assert "site 'north': the model that it began with, first.safetensors, is damaged" in str(error)  # noqa: PT017
            continue
        # A space between two words of the header, which is read alike.
        assert {name: tensor.tolist() for name, tensor in weights.items()} == {
            "weight": [[1.0, -2.0]],
            "phase": [[1.0, 2.0]],
        }
        assert metadata == METADATA


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "first.safetensors"
    path.write_bytes(b"")
    with pytest.raises(RunError, match="delete it: the site then goes on from the hub's newest model"):
        load_first_model(path, "north")
