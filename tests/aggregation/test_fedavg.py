"""FedAvg against a loop in numpy, and its guarantees: exact bits, any order, dtypes, memory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfed.aggregation import _reduce as _reduce
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

torch.set_num_threads(1)

HUGE = float(np.float32(1e30))
values = st.floats(-HUGE, HUGE, width=32, allow_subnormal=False)


def merge(updates: list[Update], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return FedAvg().merge(updates, {}, weights)[0]


def test_mean_weighted_by_examples_by_hand() -> None:
    # 1/4 of 4 and 3/4 of 8 is 7; the global model cancels.
    weights = {"w": torch.tensor([100.0])}
    updates = [
        Update("a", 1, Difference({"w": torch.tensor([4.0])}, weights), 1),
        Update("b", 1, Difference({"w": torch.tensor([8.0])}, weights), 3),
    ]
    assert merge(updates, weights)["w"].tolist() == [7.0]


@settings(max_examples=60, deadline=None)
@given(
    locals_=st.lists(st.tuples(values, st.integers(1, 10**6)), min_size=1, max_size=6),
    start=values,
)
def test_it_is_the_rounded_exact_mean(locals_: list[tuple[float, int]], start: float) -> None:
    weights = {"w": torch.tensor([start])}
    updates = [
        Update(f"s{i}", 1, Difference({"w": torch.tensor([value])}, weights), n)
        for i, (value, n) in enumerate(locals_)
    ]
    total = sum(n for _, n in locals_)
    exact = sum(Fraction(float(np.float32(value))) * n for value, n in locals_) / total
    # Eight float64 roundings of the largest term, then one to float32.
    slack = 1e-14 * max(abs(float(np.float32(v))) for v, _ in locals_)
    result = float(merge(updates, weights)["w"])
    assert abs(result - float(exact)) <= slack + abs(float(exact)) * 2**-24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("copied", [False, True])
def test_one_site_alone_gets_its_own_weights_back_bit_for_bit(dtype: torch.dtype, copied: bool) -> None:
    g = torch.Generator().manual_seed(1)
    # Values thirty orders of magnitude apart: a float64 difference would lose the small ones.
    spread = 3 if dtype == torch.float16 else 30
    local = torch.randn(1000, generator=g, dtype=torch.float64) * 10.0 ** torch.linspace(-spread, 3, 1000)
    before = torch.randn(1000, generator=g, dtype=torch.float64) * 10.0 ** torch.linspace(3, -spread, 1000)
    weights = {"w": before.to(dtype)}
    subtrahend = {"w": weights["w"].clone()} if copied else weights
    result = merge([Update("a", 1, Difference({"w": local.to(dtype)}, subtrahend), 17)], weights)["w"]
    assert torch.equal(result, local.to(dtype))


def test_a_site_that_did_not_move_leaves_the_weights_bit_for_bit() -> None:
    weights = {"w": torch.randn(999, generator=torch.Generator().manual_seed(2))}
    updates = [
        Update(s, 1, Difference({"w": weights["w"].clone()}, weights), n)
        for s, n in zip("abc", (1, 7, 5), strict=True)
    ]
    assert torch.equal(merge(updates, weights)["w"], weights["w"])


def test_a_stale_difference_is_taken_from_its_own_global_weights() -> None:
    old, now = {"w": torch.tensor([1.0])}, {"w": torch.tensor([10.0])}
    updates = [
        Update("a", 1, Difference({"w": torch.tensor([3.0])}, old), 1),
        Update("b", 2, Difference({"w": torch.tensor([14.0])}, now), 1),
    ]
    # Deltas 2 and 4, mean 3, on top of 10.
    assert merge(updates, now)["w"].tolist() == [13.0]


def test_blocks_and_groups_of_sites_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(3)
    weights = {"w": torch.randn(1003, generator=g), "b": torch.randn(7, generator=g)}
    updates = [
        Update(
            f"s{i}",
            1,
            Difference({k: torch.randn(v.shape, generator=g) for k, v in weights.items()}, weights),
            i + 1,
        )
        for i in range(5)
    ]
    whole = merge(updates, weights)
    monkeypatch.setattr(_reduce, "BLOCK_ELEMENTS", 100)
    for sites_in_memory in (4, 5):
        monkeypatch.setattr(
            _reduce, "_sites_in_memory", lambda *_, sites_in_memory=sites_in_memory: sites_in_memory
        )
        result = merge(updates, weights)
        assert all(torch.equal(result[name], whole[name]) for name in weights)


def test_float16_that_overflows_names_the_site() -> None:
    weights = {"w": torch.tensor([60000.0, 0.0], dtype=torch.float16)}
    updates = [
        Update("north", 4, {"w": torch.tensor([1.0, 0.0])}, 1),
        Update("south", 4, {"w": torch.tensor([60000.0, 0.0])}, 1),
    ]
    with pytest.raises(RuleError, match=r"round 4: 'w' leaves the range of torch.float16.* site 'south'"):
        merge(updates, weights)


def test_a_negative_number_of_examples_is_an_error() -> None:
    with pytest.raises(RuleError, match="site 'a' for round 1 states -1 examples"):
        merge([Update("a", 1, {"w": torch.zeros(1)}, -1)], {"w": torch.zeros(1)})
