"""Adam: Kingma and Ba, ICLR 2015, arXiv:1412.6980; weight decay is an L2 term in the gradient."""

from __future__ import annotations

from medfed.models.optimisers._adam import AdamFamily


class Adam(AdamFamily, tag="adam", frozen=True):
    """Adam; its weight decay is an L2 term in the gradient."""

    torch_name = "Adam"
