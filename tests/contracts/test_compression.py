"""The contract of every compression: names, shapes, zeros, unchanged inputs, finite values, error feedback.

The compressions are those of the registry, so a new file is tested without an edit here.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from medfed import registry as kinds
from medfed.errors import UpdateError, WireError
from medfed.wire.compression import Compression, Encoded, compress, decompress
from medfed.wire.weights import Difference, Weights, digest

torch.set_num_threads(1)

COMPRESSIONS = kinds.kinds("compression")


@pytest.fixture(params=sorted(COMPRESSIONS))
def one(request: pytest.FixtureRequest) -> Compression:
    return COMPRESSIONS[request.param]()  # type: ignore[return-value]


@pytest.fixture(
    params=[*[[name] for name in sorted(COMPRESSIONS)], ["top_k", "int8"], ["low_rank", "top_k", "int4"], []],
    ids=lambda names: "+".join(names) or "none",
)
def stages(request: pytest.FixtureRequest) -> list[Compression]:
    return [COMPRESSIONS[name]() for name in request.param]  # type: ignore[misc]


def delta(seed: int = 0, scale: float = 1e-3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "conv.weight": (24, 8, 3, 3),
        "conv.bias": (24,),
        "temperature": (),
        "nothing": (0, 3),
        "odd": (7, 3),
        "long.weight": (300, 200),
        "norm.running_mean": (24,),
        "norm.running_var": (24,),
    }
    return {name: scale * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def through_the_wire(encoded: Encoded) -> Encoded:
    """What the hub reads: safetensors and JSON."""
    groups = {}
    for name, group in encoded.groups.items():
        groups[name] = load(save({k: v.contiguous() for k, v in group.items()})) if group else {}
    return Encoded(groups, json.loads(json.dumps(encoded.header, allow_nan=False)))


def test_the_hub_decodes_what_the_site_meant(one: Compression) -> None:
    sent = delta()
    encoded, _ = one.encode(sent, {})
    found = one.decode(through_the_wire(encoded))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, torch.float32) for k, v in sent.items()
    }
    assert digest(found) == digest(one.decode(encoded))
    # Each is a contraction: what it leaves out is shorter than what it was given (Karimireddy 2019,
    # assumption A).
    for name, tensor in sent.items():
        left = float((tensor - found[name]).norm())
        assert left <= float(tensor.norm())


def test_the_same_input_gives_the_same_bytes(one: Compression) -> None:
    a, b = one.encode(delta(), {})[0], one.encode(delta(), {})[0]
    assert a.header == b.header
    assert {k: digest(v) for k, v in a.groups.items()} == {k: digest(v) for k, v in b.groups.items()}


def test_it_is_shorter(one: Compression) -> None:
    sent = {"w": torch.randn(300, 200, generator=torch.Generator().manual_seed(1))}
    assert one.encode(sent, {})[0].bytes <= 0.51 * 4 * 300 * 200


def test_zeros_stay_zeros(stages: list[Compression]) -> None:
    state: dict = {}
    for _ in range(2):
        encoded, state = compress(stages, delta(scale=0.0), state)
        assert all(not bool(tensor.any()) for tensor in decompress(stages, encoded).values())


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e20, 1e37])
def test_any_scale_of_float32_stays_finite_and_close(stages: list[Compression], scale: float) -> None:
    sent = delta(scale=scale)
    state: dict = {}
    for _ in range(2):
        encoded, state = compress(stages, sent, state)
        for name, tensor in decompress(stages, through_the_wire(encoded)).items():
            assert bool(torch.isfinite(tensor).all()), name


def test_one_huge_value_stays_finite(stages: list[Compression]) -> None:
    sent = delta()
    sent["long.weight"][7, 9] = 3e38
    found = decompress(stages, compress(stages, sent, {})[0])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    assert float(found["long.weight"][7, 9]) == pytest.approx(3e38, rel=0.15)


def test_what_one_round_leaves_out_comes_later(stages: list[Compression]) -> None:
    # By definition error_t = (delta_t + error_(t-1)) - received_t, so the sum of all received is the sum of
    # all deltas minus the last error.
    received: dict[str, Tensor] = {}
    intended: dict[str, Tensor] = {}
    state: dict = {}
    for number in range(6):
        sent = delta(number)
        encoded, state = compress(stages, sent, state)
        for name, tensor in decompress(stages, through_the_wire(encoded)).items():
            received[name] = received.get(name, torch.zeros(())) + tensor.double()
            intended[name] = intended.get(name, torch.zeros(())) + sent[name].double()
    for name, total in received.items():
        error = state["error"].get(name, torch.zeros(())).double()
        torch.testing.assert_close(total + error, intended[name], rtol=1e-5, atol=1e-8)


def test_a_delta_sent_repeatedly_is_more_exact_on_average_than_once(stages: list[Compression]) -> None:
    sent, rounds = delta(), 200
    state: dict = {}
    once = decompress(stages, compress(stages, sent, {})[0])
    total = {name: torch.zeros_like(tensor).double() for name, tensor in sent.items()}
    for _ in range(rounds):
        encoded, state = compress(stages, sent, state)
        for name, tensor in decompress(stages, encoded).items():
            total[name] += tensor
    for name, tensor in sent.items():
        # Without error feedback the mean would be as far off as one round is. (The low rank of a matrix that
        # has no low rank, as in this test, converges slowly: each round sends a thousandth of the rest.)
        error, single = float((total[name] / rounds - tensor).norm()), float((once[name] - tensor).norm())
        assert error <= 0.95 * single + 1e-5 * float(tensor.norm()), name


def test_running_statistics_are_exact(stages: list[Compression]) -> None:
    sent = delta()
    found = decompress(stages, compress(stages, sent, {})[0])
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(found[name], sent[name])


def test_no_input_is_changed_and_state_goes_through_a_file(stages: list[Compression]) -> None:
    weights = delta(1)
    local: Weights = {name: tensor + weights[name] for name, tensor in delta(2).items()}
    before = digest(weights), digest(local)
    _, state = compress(stages, Difference(local, weights), {})
    state_before = {name: digest(group) for name, group in state.items()}
    encoded, after = compress(stages, Difference(local, weights), state)
    assert (digest(weights), digest(local)) == before
    assert {name: digest(group) for name, group in state.items()} == state_before
    read = {name: load(save(dict(group))) if group else {} for name, group in state.items()}
    again, _ = compress(stages, Difference(local, weights), read)
    assert {k: digest(v) for k, v in again.groups.items()} == {
        k: digest(v) for k, v in encoded.groups.items()
    }
    assert after.keys() == state.keys()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
def test_values_that_are_not_finite_are_refused(one: Compression, bad: float) -> None:
    sent = {"w": torch.zeros(20, 30, dtype=torch.float64)}
    sent["w"][3, 4] = bad
    with pytest.raises(UpdateError, match="'w' can't be compressed"):
        one.encode(sent, {})


def test_damaged_groups_and_headers_are_refused(one: Compression) -> None:
    encoded, _ = one.encode(delta(), {})
    with pytest.raises(WireError, match="no table of shapes"):
        one.decode(Encoded(encoded.groups, {}))
    with pytest.raises(WireError, match="no table of shapes"):
        one.decode(Encoded(encoded.groups, {"shapes": {"w": [1 << 40, 1 << 40]}}))
    with pytest.raises(WireError, match="has no"):
        one.decode(Encoded({}, encoded.header))
    longer = {
        name: [*shape[:-1], 2 * shape[-1] + 500] if shape else [999]
        for name, shape in encoded.header["shapes"].items()
    }
    with pytest.raises(WireError, match=r"expected|has no"):
        one.decode(Encoded(encoded.groups, {"shapes": longer}))
    for group, tensors in encoded.groups.items():
        for name, tensor in tensors.items():
            other = {**encoded.groups, group: {**tensors, name: tensor.to(torch.complex64)}}
            with pytest.raises(WireError, match=f"'{name}' of group '{group}' holds .*complex64, expected"):
                one.decode(Encoded(other, encoded.header))


def test_a_stack_that_the_site_did_not_use_is_refused(one: Compression) -> None:
    with pytest.raises(WireError, match="has no stages"):
        decompress([one], Encoded({}, {}))
    with pytest.raises(WireError, match="is damaged"):
        decompress([one], Encoded({}, {"stages": {}}))
    wrong = {"stages": {"header": {"shapes": {}}, "inner": {"anything": {}}}}
    with pytest.raises(WireError, match="group 'anything' was compressed again"):
        decompress([one, one], Encoded({}, wrong))


def test_its_file_cites_a_paper(one: Compression) -> None:
    import importlib

    assert "arXiv:" in (importlib.import_module(type(one).__module__).__doc__ or "")
    assert (type(one).__doc__ or "").strip().endswith(".")
