"""What rules keep from round to round: which tensors, in which precision."""

from __future__ import annotations

import pytest
import torch

from medfed.aggregation._state import state_dtype, state_group, zeros_for_state
from medfed.aggregation.fedadam import FedAdam
from medfed.errors import RuleError


@pytest.mark.parametrize(
    "dtype, kept",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_kept_in_float32(dtype, kept):
    assert state_dtype(dtype) == kept
    zeros = zeros_for_state({"w": torch.ones(2, 3, dtype=dtype), "n.running_mean": torch.ones(4)})
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in zeros.items()} == {"w": (kept, (2, 3))}
    assert not zeros["w"].any()


def test_a_state_of_another_rule_is_refused():
    state = {"moment": {"w": torch.ones(1)}}
    assert state_group(state, "moment", FedAdam()) is state["moment"]
    with pytest.raises(RuleError, match=r"fedadam: the state has no group 'second' \(it has: \['moment'\]\)"):
        state_group(state, "second", FedAdam())
    with pytest.raises(RuleError, match=r"it has: none"):
        state_group({}, "second", FedAdam())
