"""The contract of a compression.

The hub decodes names, shapes and finite values; what one round leaves out comes later; damage is refused.
"""

from __future__ import annotations

import json
from math import isclose
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from medfed.errors import UpdateError, WireError
from medfed.testing._contract import OF_EVERY_KIND, Contract, raises
from medfed.wire.compression import Compression, Encoded, State, compress, decompress
from medfed.wire.compression.int8 import Int8
from medfed.wire.compression.low_rank import LowRank
from medfed.wire.compression.top_k import TopK
from medfed.wire.weights import Difference, Weights, digest

check_compression: Contract[Compression] = Contract("compression", OF_EVERY_KIND)


def stacks(compression: Compression) -> list[list[Compression]]:
    """Return the compression alone, before another, and after two others."""
    return [[compression], [compression, Int8()], [LowRank(), TopK(), compression]]


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


def over_the_wire(encoded: Encoded) -> Encoded:
    """Return what the hub reads: safetensors and JSON."""
    groups = {name: through_a_file(group) for name, group in encoded.groups.items()}
    return Encoded(groups, json.loads(json.dumps(encoded.header, allow_nan=False)))


def through_a_file(group: Weights) -> dict[str, Tensor]:
    return load(save({name: tensor.contiguous() for name, tensor in group.items()})) if group else {}


def digests(groups: State) -> dict[str, str]:
    return {name: digest(group) for name, group in groups.items()}


@check_compression.check
def the_hub_decodes_the_sites_names_shapes_and_about_its_values(compression: Compression) -> None:
    sent = delta()
    encoded, _ = compression.encode(sent, {})
    received = compression.decode(over_the_wire(encoded))
    assert {k: (v.shape, v.dtype) for k, v in received.items()} == {
        k: (v.shape, torch.float32) for k, v in sent.items()
    }
    assert digest(received) == digest(compression.decode(encoded))
    # Each is a contraction: what it leaves out is shorter than what it was given (Karimireddy 2019,
    # assumption A).
    for name, tensor in sent.items():
        assert float((tensor - received[name]).norm()) <= float(tensor.norm()), name


@check_compression.check
def the_same_input_gives_the_same_bytes(compression: Compression) -> None:
    first, second = (compression.encode(delta(), {})[0] for _ in range(2))
    assert first.header == second.header
    assert digests(first.groups) == digests(second.groups)


@check_compression.check
def it_takes_at_most_about_half_the_bytes(compression: Compression) -> None:
    sent = {"w": torch.randn(300, 200, generator=torch.Generator().manual_seed(1))}
    assert compression.encode(sent, {})[0].bytes <= 0.51 * 4 * 300 * 200


@check_compression.check
def zeros_stay_zeros(compression: Compression) -> None:
    for stages in stacks(compression):
        state: State = {}
        for _ in range(2):
            encoded, state = compress(stages, delta(scale=0.0), state)
            assert all(not bool(tensor.any()) for tensor in decompress(stages, encoded).values())


@check_compression.check
def any_scale_of_float32_stays_finite(compression: Compression) -> None:
    for stages in stacks(compression):
        for scale in (1e-38, 1e-30, 1.0, 1e20, 1e37):
            state: State = {}
            for _ in range(2):
                encoded, state = compress(stages, delta(scale=scale), state)
                for name, tensor in decompress(stages, over_the_wire(encoded)).items():
                    assert bool(torch.isfinite(tensor).all()), f"{name} at a scale of {scale:g}"


@check_compression.check
def one_huge_value_stays_and_all_are_finite(compression: Compression) -> None:
    sent = delta()
    sent["long.weight"][7, 9] = 3e38
    for stages in stacks(compression):
        received = decompress(stages, compress(stages, sent, {})[0])
        assert all(bool(torch.isfinite(tensor).all()) for tensor in received.values())
        assert isclose(float(received["long.weight"][7, 9]), 3e38, rel_tol=0.15)


@check_compression.check
def what_one_round_leaves_out_comes_later(compression: Compression) -> None:
    # By definition error_t = (delta_t + error_(t-1)) - received_t, so the sum of all received is the sum of
    # all deltas minus the last error.
    for stages in stacks(compression):
        received = {name: torch.zeros_like(tensor).double() for name, tensor in delta().items()}
        intended = {name: tensor.clone() for name, tensor in received.items()}
        state: State = {}
        for number in range(6):
            encoded, state = compress(stages, delta(number), state)
            for name, tensor in decompress(stages, over_the_wire(encoded)).items():
                received[name] += tensor
                intended[name] += delta(number)[name]
        for name, total in received.items():
            error = state["error"].get(name, torch.zeros(())).double()
            torch.testing.assert_close(total + error, intended[name], rtol=1e-5, atol=1e-8)


@check_compression.check
def a_delta_sent_repeatedly_is_more_exact_on_average_than_once(compression: Compression) -> None:
    for stages in stacks(compression)[:2]:
        check_mean_of_rounds(stages)


def check_mean_of_rounds(stages: list[Compression]) -> None:
    """Check that error feedback brings the mean of many rounds nearer to what was sent than one round is."""
    sent, rounds = delta(), 200
    once = decompress(stages, compress(stages, sent, {})[0])
    total = {name: torch.zeros_like(tensor).double() for name, tensor in sent.items()}
    state: State = {}
    for _ in range(rounds):
        encoded, state = compress(stages, sent, state)
        for name, tensor in decompress(stages, encoded).items():
            total[name] += tensor
    for name, tensor in sent.items():
        # The low rank of a matrix that has no low rank, as here, converges slowly: each round sends a
        # thousandth of the rest.
        error, single = float((total[name] / rounds - tensor).norm()), float((once[name] - tensor).norm())
        assert error <= 0.95 * single + 1e-5 * float(tensor.norm()), name


@check_compression.check
def no_input_is_changed_and_state_goes_through_a_file(compression: Compression) -> None:
    for stages in stacks(compression):
        weights = delta(1)
        local: Weights = {name: tensor + weights[name] for name, tensor in delta(2).items()}
        _, state = compress(stages, Difference(local, weights), {})
        before = digest(weights), digest(local), digests(state)
        encoded, after = compress(stages, Difference(local, weights), state)
        assert (digest(weights), digest(local), digests(state)) == before
        restored = {name: through_a_file(group) for name, group in state.items()}
        again, _ = compress(stages, Difference(local, weights), restored)
        assert digests(again.groups) == digests(encoded.groups)
        assert after.keys() == state.keys()


@check_compression.check
def values_that_are_not_finite_are_refused(compression: Compression) -> None:
    for value in (float("nan"), float("inf"), 1e39):
        sent = {"w": torch.zeros(20, 30, dtype=torch.float64)}
        sent["w"][3, 4] = value
        with raises(UpdateError, r"'w' can't be compressed"):
            compression.encode(sent, {})


@check_compression.check
def damaged_groups_and_headers_are_refused(compression: Compression) -> None:
    encoded, _ = compression.encode(delta(), {})
    shapes = encoded.header["shapes"]
    longer = {name: [*shape[:-1], 2 * shape[-1] + 500] if shape else [999] for name, shape in shapes.items()}
    headers: list[tuple[dict[str, Any], str]] = [
        ({}, "no table of shapes"),
        ({"shapes": {"w": [1 << 40, 1 << 40]}}, "no table of shapes"),
        ({"shapes": longer}, r"expected|has no"),
    ]
    for header, message in headers:
        with raises(WireError, message):
            compression.decode(Encoded(encoded.groups, header))
    with raises(WireError, "has no"):
        compression.decode(Encoded({}, encoded.header))
    for group, tensors in encoded.groups.items():
        for name, tensor in tensors.items():
            damaged = {**encoded.groups, group: {**tensors, name: tensor.to(torch.complex64)}}
            with raises(WireError, f"'{name}' of group '{group}' holds .*complex64, expected"):
                compression.decode(Encoded(damaged, encoded.header))


@check_compression.check
def a_stack_that_the_site_did_not_use_is_refused(compression: Compression) -> None:
    unknown: dict[str, Any] = {"stages": {"header": {"shapes": {}}, "inner": {"anything": {}}}}
    for stages, header, message in (
        ([compression], {}, "has no stages"),
        ([compression], {"stages": {}}, "is damaged"),
        ([compression, compression], unknown, "group 'anything' was compressed again"),
    ):
        with raises(WireError, message):
            decompress(stages, Encoded({}, header))
