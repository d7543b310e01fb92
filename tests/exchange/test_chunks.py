from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medfed.errors import WireError
from medfed.exchange._chunks import split_chunks
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 17))
def test_chunks_are_the_same_bytes_all_of_one_size_but_the_last(pieces, size):
    found = [b"".join(chunk) for chunk in split_chunks(iter(pieces), size)]
    assert b"".join(found) == b"".join(pieces)
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(0 < len(chunk) <= size for chunk in found[-1:])


def test_a_chunk_is_cut_without_a_copy():
    buffer = bytearray(b"abcdefgh")
    chunks = list(split_chunks([b"12", memoryview(buffer)], 4))
    buffer[:] = b"ABCDEFGH"
    assert [b"".join(chunk) for chunk in chunks] == [b"12AB", b"CDEF", b"GH"]


def model() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(12.0).reshape(3, 4),
        'ü"quoted\\': torch.tensor(2.5),
        "half": torch.ones(5, dtype=torch.float16),
        "brain": torch.full((3,), 0.1, dtype=torch.bfloat16),
        "double": torch.ones(2, dtype=torch.float64),
        "none": torch.empty(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }


def test_pieces_are_the_bytes_that_safetensors_itself_writes():
    update = Update(
        "n", 2, Difference(model(), model()), 12, {"x": 0.5}, {"g": {"i": torch.ones(3, dtype=torch.int64)}}
    )
    assert b"".join(wire.update_pieces(update, "s")) == wire.encode_update(update, "s")
    sent = GlobalModel(3, model(), ("n",), study="s")
    assert b"".join(wire.global_pieces(sent)) == wire.encode_global(sent)


def test_a_model_in_a_file_is_read_after_the_file_is_gone(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(wire.encode_global(GlobalModel(3, model(), ("n",), study="s")))
    found = wire.read_global(path, "s")
    path.unlink()
    assert (found.round, found.participants, found.final) == (3, ("n",), False)
    for name, tensor in model().items():
        assert found.weights[name].dtype == tensor.dtype
        assert torch.equal(found.weights[name], tensor)


def test_reading_one_tensor_after_another_takes_the_memory_of_one(tmp_path):
    weights = {f"layer{index}": torch.ones(2_000_000) for index in range(20)}
    path = tmp_path / "model"
    path.write_bytes(wire.encode_global(GlobalModel(0, weights)))
    weights.clear()

    def resident_mb() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    found = wire.read_global(path)
    before = resident_mb()
    most = max(resident_mb() - before for tensor in found.weights.values() if tensor.sum() == 2_000_000)
    # All 20 tensors are 160 MB, one is 8.
    assert most < 60


@pytest.mark.parametrize("cut_off", [1, 100])
def test_a_file_that_is_cut_off_is_refused(tmp_path, cut_off):
    path = tmp_path / "model"
    path.write_bytes(wire.encode_global(GlobalModel(0, model()))[:-cut_off])
    with pytest.raises(WireError, match=r"a global model of .* bytes is not a safetensors file"):
        wire.read_global(path)
