"""What rules keep from round to round: named groups of tensors, float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.aggregation._reduce import Block
from medfed.aggregation._rule import Rule, State
from medfed.errors import RuleError
from medfed.registry import kind_of
from medfed.wire.weights import Weights, is_running_statistic


def state_group(state: State, group: str, rule: Rule) -> Weights:
    """Return one group of the state.

    Raises:
        RuleError: if another rule made the state.
    """
    if group not in state:
        raise RuleError(
            f"{kind_of(rule)}: the state has no group '{group}' (it has: {sorted(state) or 'none'}); start "
            f"from the rule's init, or resume a run of the same rule"
        )
    return state[group]


def state_block(group: Weights, block: Block) -> Tensor:
    """Return a float64 copy of a state tensor's values in a block's section, valid until the next block."""
    return block.double(group[block.name])


def zeros_for_state(weights: Weights) -> dict[str, Tensor]:
    """Return zeros, float32 or wider, for every tensor that a server optimiser steps."""
    return {
        name: torch.zeros(tensor.shape, dtype=state_dtype(tensor.dtype))
        for name, tensor in weights.items()
        if not is_running_statistic(name)
    }


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precisions, which lose a moment's small steps, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)
