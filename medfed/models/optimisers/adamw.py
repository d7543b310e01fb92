"""Adam with decoupled weight decay: Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.models.optimisers._adam import AdamFamily


class AdamW(AdamFamily, tag="adamw", frozen=True):
    """Adam with decoupled weight decay, a good default."""

    torch_name = "AdamW"

    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
