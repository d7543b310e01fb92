"""The settings that Adam and AdamW share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from medfed.models.optimisers._optimiser import Optimiser

if TYPE_CHECKING:
    from torch import nn, optim


class AdamFamily(Optimiser, frozen=True):
    """The settings of Adam and AdamW, which differ in the meaning of the weight decay."""

    # The name of the optimiser in torch.optim.
    torch_name: ClassVar[str]

    lr: Annotated[float, Meta(gt=0)] = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: Annotated[float, Meta(gt=0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        from torch import optim

        optimizer: type[optim.Adam] = getattr(optim, self.torch_name)
        return optimizer(
            parameters, lr=self.lr, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )
