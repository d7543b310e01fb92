"""FedBN: every kind of norm layer stays, with its statistics, and nothing else does."""

from __future__ import annotations

from torch import nn

from medfed.local_training.fedbn import FedBN
from medfed.wire.weights import weights_of


def test_norm_layers_stay_and_all_else_is_sent() -> None:
    module = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 1),
            "batch": nn.BatchNorm2d(2),
            "instance": nn.InstanceNorm2d(2, affine=True),
            "group": nn.GroupNorm(1, 2),
            "layer": nn.LayerNorm(2),
        }
    )
    assert set(weights_of(module, FedBN().keep_local())) == {"conv.weight", "conv.bias"}
    assert "batch.running_var" in weights_of(module)
    assert FedBN.is_data_free
