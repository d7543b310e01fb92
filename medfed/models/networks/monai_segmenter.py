"""A segmentation network of MONAI by MONAI's own name and arguments, such as that of a bundle.

MONAI: Cardoso et al. 2022, arXiv:2211.02701.
"""

from __future__ import annotations

from typing import Any

import msgspec

from medfed.models.networks._monai_catalogue import SEGMENTERS
from medfed.models.networks._monai_network import MonaiNetwork


class MonaiSegmenter(MonaiNetwork, tag="monai_segmenter", frozen=True):
    """Segmentation network of MONAI by its own name and arguments; `name: bundle` takes those of `start`.

    name: one of AttentionUnet, BasicUNet, SegResNet, SwinUNETR, UNETR, UNet.  arguments: MONAI's, without
    channels, axes and image size, which the study's data and task say.
    """

    serves = ("segment",)
    catalogue = SEGMENTERS

    name: str = "SegResNet"
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
