"""Cyclic transfer passes on one site's model."""

from __future__ import annotations

import pytest
import torch
from one_weight import merged, update

from medfed.aggregation.cyclic import Cyclic
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

torch.set_num_threads(1)


def test_cyclic_takes_the_one_model_bit_for_bit() -> None:
    g = torch.Generator().manual_seed(0)
    weights, local = {"w": torch.randn(50, generator=g)}, {"w": torch.randn(50, generator=g) * 1e-9}
    new, state = Cyclic().merge([Update("a", 1, Difference(local, weights), 4)], {}, weights)
    assert torch.equal(new["w"], local["w"])
    assert state == {}


def test_cyclic_refuses_two_sites() -> None:
    with pytest.raises(RuleError, match=r"round 3: 2 sites answered \('a', 'b'\), exactly 1 is expected"):
        merged(Cyclic(), update("a", 1, 1), update("b", 1, 1))
