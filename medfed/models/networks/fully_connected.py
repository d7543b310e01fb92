"""Fully connected network for tables; without a hidden layer it is logistic, linear or Cox regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from medfed.models.networks._network import Network

if TYPE_CHECKING:
    from torch import nn


class FullyConnected(Network, tag="fully_connected", frozen=True):
    """Fully connected network for tables; with `hidden: []` it is a plain regression.

    With `hidden: []` the only layer is `output`, an `nn.Linear` with torch's own initial
    weights, as in FLamby.
    """

    serves = ("table", "survival")
    head = "output"

    hidden: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    activation: Literal["relu", "prelu", "gelu", "tanh"] = "relu"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        from monai.networks.nets import FullyConnectedNet

        return FullyConnectedNet(
            in_channels=inputs,
            out_channels=outputs,
            hidden_channels=self.hidden,
            act=self.activation.upper(),
            dropout=self.dropout or None,
            adn_ordering="AD",
        )
