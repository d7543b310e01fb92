from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from medfed.errors import MedfedError, WireError
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(3, 4, generator=generator), "b": torch.randn((), generator=generator)}


def update(**changes) -> Update:
    weights = model()
    local = {name: tensor + 1 for name, tensor in weights.items()}
    fields = {"site": "north", "round": 2, "delta": Difference(local, weights), "examples": 12}
    return Update(**{**fields, "scalars": {"val/dice": 0.5}, **changes})


def test_an_update_comes_back_with_every_field_and_an_exact_difference():
    sent = update(groups={"control": {"a.weight": torch.ones(3, 4)}})
    received = wire.decode_update(wire.encode_update(sent, "study"), model(), "study")
    assert (received.site, received.round, received.examples, received.scalars) == (
        "north",
        2,
        12,
        {"val/dice": 0.5},
    )
    for name, tensor in model().items():
        # By hand: local is float32(w + 1), and the difference to w is taken in float64.
        assert torch.equal(received.delta[name], (tensor + 1).double() - tensor.double())
    assert torch.equal(received.groups["control"]["a.weight"], torch.ones(3, 4))


def test_a_changed_difference_travels_as_it_is():
    sent = update(delta={name: torch.full_like(tensor, 0.25) for name, tensor in model().items()})
    received = wire.decode_update(wire.encode_update(sent), model())
    assert torch.equal(received.delta["a.weight"], torch.full((3, 4), 0.25))


def test_a_file_is_read_one_tensor_at_a_time(tmp_path):
    path = tmp_path / "update"
    path.write_bytes(wire.encode_update(update()))
    received = wire.read_update(path, model())
    assert set(received.delta) == set(model())
    assert torch.equal(received.delta["b"], (model()["b"] + 1).double() - model()["b"].double())


def test_opening_an_update_reads_no_tensor(tmp_path, monkeypatch):
    path = tmp_path / "update"
    path.write_bytes(wire.encode_update(update()))
    read = []
    monkeypatch.setattr(os, "preadv", lambda *asked: read.append(asked) or 0)
    received = wire.read_update(path, model())
    assert list(received.delta) == ["a.weight", "b"]
    assert read == []
    with pytest.raises(WireError, match="became shorter"):
        received.delta["b"]


def test_a_global_model_comes_back():
    sent = GlobalModel(3, model(), ("north", "west"), False, "study", {"control": {"b": torch.ones(())}})
    received = wire.decode_global(wire.encode_global(sent), "study")
    assert (received.round, received.participants, received.final, received.study_digest) == (
        3,
        ("north", "west"),
        False,
        "study",
    )
    assert all(torch.equal(received.weights[name], tensor) for name, tensor in model().items())
    assert torch.equal(received.groups["control"]["b"], torch.ones(()))
    assert received.selects("west")
    assert not received.selects("south")


def test_bfloat16_weights_travel():
    weights = {"w": torch.ones(4, dtype=torch.bfloat16)}
    received = wire.decode_global(wire.encode_global(GlobalModel(0, weights)))
    assert received.weights["w"].dtype == torch.bfloat16


def many_dtypes() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(12.0).reshape(3, 4),
        'ü"quoted\\': torch.tensor(2.5),
        "half": torch.ones(5, dtype=torch.float16),
        "brain": torch.full((3,), 0.1, dtype=torch.bfloat16),
        "double": torch.ones(2, dtype=torch.float64),
        "none": torch.empty(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }


def written_by_safetensors(data: bytes) -> bytes:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return save(load(data), metadata=header["__metadata__"])


def test_the_bytes_are_those_that_safetensors_itself_writes():
    update = Update(
        "n",
        2,
        Difference(many_dtypes(), many_dtypes()),
        12,
        {"x": 0.5},
        {"g": {"i": torch.ones(3, dtype=torch.int64)}},
    )
    for data in (
        wire.encode_update(update, "s"),
        wire.encode_global(GlobalModel(3, many_dtypes(), ("n",), study_digest="s")),
    ):
        assert data == written_by_safetensors(data)


def test_a_model_in_a_file_is_read_after_the_file_is_gone(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(wire.encode_global(GlobalModel(3, many_dtypes(), ("n",), study_digest="s")))
    received = wire.read_global(path, "s")
    path.unlink()
    assert (received.round, received.participants, received.final) == (3, ("n",), False)
    for name, tensor in many_dtypes().items():
        assert received.weights[name].dtype == tensor.dtype
        assert torch.equal(received.weights[name], tensor)


def test_reading_one_tensor_after_another_takes_the_memory_of_one(tmp_path):
    weights = {f"layer{index}": torch.ones(2_000_000) for index in range(20)}
    path = tmp_path / "model"
    path.write_bytes(wire.encode_global(GlobalModel(0, weights)))
    weights.clear()

    def resident_mb() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    received = wire.read_global(path)
    before = resident_mb()
    most = max(resident_mb() - before for tensor in received.weights.values() if tensor.sum() == 2_000_000)
    # All 20 tensors are 160 MB, one is 8.
    assert most < 60


@pytest.mark.parametrize("cut_off", [1, 100])
def test_a_file_that_is_cut_off_is_refused(tmp_path, cut_off):
    path = tmp_path / "model"
    path.write_bytes(wire.encode_global(GlobalModel(0, many_dtypes()))[:-cut_off])
    with pytest.raises(WireError, match=r"a global model of .* bytes is not a safetensors file"):
        wire.read_global(path)


def header(**changes) -> bytes:
    fields = {
        "is": "update",
        "format": wire.FORMAT,
        "study": "",
        "round": 1,
        "site": "n",
        "examples": 1,
        "scalars": {},
    }
    return save({"local/b": torch.ones(())}, metadata={"medfed": json.dumps({**fields, **changes})})


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "0 bytes are too few for an update"),
        (wire.encode_update(update())[:-3], "not an update"),
        (wire.encode_update(update())[:40], "too few"),
        (pickle.dumps({"a": 1}), "too few|not an update"),
        (save({"local/b": torch.ones(())}), "has no medfed header"),
        (save({"b": torch.ones(())}, metadata={"medfed": "{}"}), "the header cannot be decoded"),
        (header(format="medfed-9"), "the format is 'medfed-9', this medfed reads 'medfed-1'"),
        (header(extra=1), "unknown field `extra`"),
        (header(examples="7"), "Expected `int`"),
        (header(site="x" * (2 << 20)), "a header of 2097\\d+ characters"),
        (wire.encode_global(GlobalModel(1, model())), "expected an update, found a global model"),
    ],
)
def test_data_that_is_no_update_is_refused(data, message):
    with pytest.raises(WireError, match=message):
        wire.decode_update(data, model())


def test_another_studys_update_is_refused():
    with pytest.raises(WireError, match="belongs to study other-study, this is study this-study"):
        wire.decode_update(wire.encode_update(update(), "other-study"), model(), "this-study")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 40))
def test_damaged_bytes_never_raise_anything_else(place, value, cut):
    data = bytearray(wire.encode_update(update()))
    data[place % len(data)] = value
    with contextlib.suppress(MedfedError):
        wire.decode_update(bytes(data[: len(data) - cut]), model())


def test_nothing_received_is_unpickled():
    source = Path(wire.__file__).read_text()
    assert "torch.load" not in source.replace("passed to torch.load", "")
    assert "import pickle" not in source
