"""The norms of updates, summed in float32 blocks, against numpy in float64, and where float32 fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfed.aggregation import _reduce as _reduce
from medfed.aggregation._reduce import BLOCK_ELEMENTS, squared_norms
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

torch.set_num_threads(1)

# Two full blocks and a remainder, and an empty tensor.
SHAPES = {"wide": (2 * BLOCK_ELEMENTS + 17,), "small": (3, 5), "none": (0,)}


def model(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def exact(local: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> float:
    return sum(
        float(np.square(local[name].double().numpy() - weights[name].double().numpy()).sum())
        for name in weights
    )


# 1e25: the squares overflow float32. 1e-25: they underflow. 1e-9: steps of a round late in training.
@pytest.mark.parametrize("step", [1.0, 1e-3, 1e-9, 1e-25, 1e25])
def test_norms_of_models_and_of_bare_deltas(step: float) -> None:
    weights = {name: tensor * (0 if step < 1e-9 else 1) for name, tensor in model(0).items()}
    local = {name: weights[name] + moved for name, moved in model(1, step).items()}
    bare = {name: (local[name].double() - weights[name].double()) for name in weights}
    updates = [Update("a", 1, Difference(local, weights), 1), Update("b", 1, bare, 1)]
    squared = squared_norms(updates, weights)
    assert squared[1] == pytest.approx(exact(local, weights), rel=1e-12, abs=0)
    assert squared[0] == pytest.approx(squared[1], rel=1e-5, abs=0)


def test_sites_that_are_read_a_few_at_a_time_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model(0)
    updates = [Update(f"s{i}", 1, Difference(model(i + 1), weights), 1) for i in range(6)]
    whole = squared_norms(updates, weights)
    monkeypatch.setattr(_reduce, "_sites_in_memory", lambda *_: 4)
    assert squared_norms(updates, weights) == whole


def test_a_value_that_is_not_finite_names_the_site() -> None:
    weights, bad = model(0), model(1)
    bad["small"][1, 2] = torch.nan
    updates = [Update("a", 1, Difference(model(2), weights), 1), Update("b", 1, Difference(bad, weights), 1)]
    with pytest.raises(RuleError, match="site 'b' for round 1: the norm of its delta is not finite"):
        squared_norms(updates, weights)
