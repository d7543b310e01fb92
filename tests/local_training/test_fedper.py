"""FedPer: the head stays, or the submodule that the study names; its training is in test_fedrep.py."""

from __future__ import annotations

from torch import nn

from medfed.local_training.fedper import FedPer
from medfed.wire.weights import weights_of


def test_the_named_layer_stays_and_all_else_is_sent() -> None:
    module = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1), "neck": nn.Linear(2, 2)})
    assert set(weights_of(module, FedPer().keep_local())) == {
        f"{layer}.{name}" for layer in ("body", "neck") for name in ("weight", "bias")
    }
    kept = set(weights_of(module)) - set(weights_of(module, FedPer(head="neck").keep_local()))
    assert kept == {"neck.weight", "neck.bias"}
    assert FedPer.is_data_free
