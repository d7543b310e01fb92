"""A classification network of MONAI by MONAI's own name and arguments, such as that of a bundle.

MONAI: Cardoso et al. 2022, arXiv:2211.02701.
"""

from __future__ import annotations

from typing import Any

import msgspec

from medfed.models.networks._monai_catalogue import CLASSIFIERS
from medfed.models.networks._monai_network import MonaiNetwork


class MonaiClassifier(MonaiNetwork, tag="monai_classifier", frozen=True):
    """Network of MONAI for whole images by its own name and arguments; `name: bundle` takes those of `start`.

    name: one of DenseNet121 (169, 201, 264), EfficientNetBN, resnet10 (18, 34, 50).  arguments: MONAI's,
    without channels, axes and image size, which the study's data and task say.
    """

    serves = ("classify", "multilabel")
    catalogue = CLASSIFIERS

    name: str = "DenseNet121"
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
