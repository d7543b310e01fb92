"""One tensor of one site's update: its values, differences and squares, section by section."""

from __future__ import annotations

import pytest
import torch

from medfed.aggregation._site_tensor import SiteTensor, site_tensor
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

GLOBAL = torch.tensor([1.0, 2.0, 3.0, 4.0])
LOCAL = torch.tensor([1.5, 2.0, 1.0, 8.0])
SECTION = slice(1, 4)


def buffer(count: int = 3) -> torch.Tensor:
    return torch.full((count,), 99.0, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_models_and_bare_deltas_say_the_same(dtype):
    model = SiteTensor(LOCAL.to(dtype), GLOBAL.to(dtype))
    bare = SiteTensor((LOCAL - GLOBAL).to(dtype), None)
    global_values = GLOBAL.to(dtype)
    for tensor in (model, bare):
        assert tensor.delta_into(buffer(), SECTION).tolist() == [0.0, -2.0, 4.0]
        assert tensor.model_into(buffer(), SECTION, global_values).tolist() == [2.0, 1.0, 8.0]
        assert tensor.squares(SECTION, torch.empty(3), buffer()) == 20.0
        assert tensor.is_summed_whole(global_values, SECTION)
    assert model.values_into(buffer(), SECTION).tolist() == [2.0, 1.0, 8.0]


def test_a_model_that_started_from_an_older_one_is_moved_to_the_newer():
    older = SiteTensor(LOCAL, GLOBAL - 1)
    assert not older.is_summed_whole(GLOBAL, SECTION)
    # Local minus older, plus newer: 2 - 1 + 2, 1 - 2 + 3, 8 - 3 + 4.
    assert older.model_into(buffer(), SECTION, GLOBAL).tolist() == [3.0, 2.0, 9.0]


def test_a_copy_of_the_global_weights_counts_as_these():
    assert SiteTensor(LOCAL, GLOBAL.clone()).is_summed_whole(GLOBAL, SECTION)
    assert not SiteTensor(LOCAL.double(), GLOBAL.double()).is_summed_whole(GLOBAL, SECTION)


def test_its_own_model_keeps_its_bits_whatever_the_scale():
    tiny = SiteTensor(torch.tensor([1e-30]), torch.tensor([1.0]))
    # 1e-30 - 1 + 1 would be 0.
    assert tiny.model_into(buffer(1), slice(0, 1), torch.tensor([1.0])).item() == torch.tensor(1e-30).item()


@pytest.mark.parametrize("size", [1e-15, 1e25])
def test_squares_that_float32_cannot_hold_are_summed_in_float64(size):
    tensor = SiteTensor(torch.full((4,), size), torch.zeros(4))
    exact = 4 * float(torch.tensor(size)) ** 2
    assert tensor.squares(slice(0, 4), torch.empty(4), buffer(4)) == pytest.approx(exact, rel=1e-12)


def fetched(delta) -> SiteTensor:
    return site_tensor(Update("north", 2, delta, 3), "w", GLOBAL.reshape(2, 2))


def test_a_tensor_is_flat_and_a_difference_gives_both_sides():
    local, origin = LOCAL.reshape(2, 2), GLOBAL.reshape(2, 2)
    both = fetched(Difference({"w": local}, {"w": origin}))
    assert (both.values.tolist(), both.origin.tolist()) == (LOCAL.tolist(), GLOBAL.tolist())
    bare = fetched({"w": local})
    assert (bare.values.tolist(), bare.origin) == (LOCAL.tolist(), None)


def test_a_missing_tensor_or_another_shape_names_the_site():
    with pytest.raises(RuleError, match="site 'north' for round 2: 'w' is missing; the global model has it"):
        fetched({"v": LOCAL})
    message = r"round 2: 'w' has shape \(4,\), the global model has \(2, 2\)"
    with pytest.raises(RuleError, match=message):
        fetched({"w": LOCAL})
    with pytest.raises(RuleError, match=message):
        fetched(Difference({"w": LOCAL.reshape(2, 2)}, {"w": GLOBAL}))
