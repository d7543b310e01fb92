"""An image classifier of the package timm for whole 2D images: the extra `timm`.

Wightman: PyTorch Image Models, 2019, doi:10.5281/zenodo.4414861; the package is Apache-2.0. Models are built
by their name: nothing is downloaded. Weights come from a file by `start`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from medfed.errors import StudyError
from medfed.models.networks._hugging_face_catalogue import RATE
from medfed.models.networks._monai_catalogue import Check, Entry, check_arguments, one_of
from medfed.models.networks._network import SpatialNetwork

if TYPE_CHECKING:
    from torch import nn

# What a study may say beside a model's name, which fixes everything else. timm takes more: a path of weights,
# a switch to download them.
ARGUMENTS: dict[str, Check] = {
    "drop_rate": RATE,
    "drop_path_rate": RATE,
    "global_pool": one_of("avg", "max", "avgmax", "catavgmax", "token", "map"),
}
# Most models halve an image five times.
_LEAST_SIDE = 32


class Timm(SpatialNetwork, tag="timm", frozen=True):
    """Image classifier of the package timm (PyTorch Image Models) for whole 2D images, grey or coloured.

    name: the model's name in timm, without the words for its weights: resnet18, efficientnet_b0,
    convnext_tiny, vit_small_patch16_224, and whatever else of `timm.list_models()` has one last layer.
    arguments: drop_rate, drop_path_rate and global_pool; channels, classes and image size are the study's.
    """

    serves = ("classify", "multilabel")
    packages: ClassVar[Mapping[str, str]] = {"timm": "medfed[timm]", "torchvision": "medfed[timm]"}

    name: str = "resnet18"
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    # Its models are for planes only.
    spatial_dims: Literal[2] = 2

    @property
    def head(self) -> str:  # type: ignore[override]  # it depends on the model that is named
        return f"model.{self._classifier}"

    @property
    def _classifier(self) -> str:
        """The path of the last layer in timm's model.

        Raises:
            StudyError: if timm has no model of this name, or it is no classifier with one last layer.
        """
        timm = _timm()
        if self.name not in timm.list_models():
            near = get_close_matches(self.name.partition(".")[0], timm.list_models(), 1)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            raise StudyError(
                f"network.name: '{self.name[:60]}' is not a model of timm {timm.__version__} "
                f"(timm.list_models()){meant}"
            )
        config = timm.models.get_pretrained_cfg(self.name, allow_unregistered=True)
        classifier = getattr(config, "classifier", None)
        if not isinstance(classifier, str):
            raise StudyError(
                f"network.name: '{self.name}' has no single last layer; take another model of timm"
            )
        return classifier

    def check_size(self, size: tuple[int, ...] | None) -> None:
        check_arguments(self.name, Entry(ARGUMENTS, ""), self.arguments)
        patch = re.search(r"_patch(\d+)", self.name)
        if patch:  # it would leave out the rest of an image
            self.check_sides(size, int(patch[1]))
        else:
            self.check_min_side(size, _LEAST_SIDE)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        self._classifier  # noqa: B018 - it raises where a model can't be used
        timm = _timm()
        config = timm.models.get_pretrained_cfg(self.name, allow_unregistered=True)
        own: dict[str, Any] = {"pretrained": False, "in_chans": inputs, "num_classes": outputs}
        if getattr(config, "fixed_input_size", False):
            own["img_size"] = self.require_size(size)[::-1]  # rows, columns
        try:
            model = timm.create_model(self.name, **own, **self.arguments)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
            raise self._refusal(error) from None
        from medfed.models.networks._timm_logits import TimmLogits
        from medfed.models.networks._vanishing import check_vanishing

        network = TimmLogits(model)
        if size is not None:
            check_vanishing(network, "timm", inputs, size)
        return network

    def _refusal(self, error: Exception) -> StudyError:
        return StudyError(
            f"network: timm cannot build {self.name} so: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        )


def _timm() -> Any:
    """Return the package.

    Raises:
        StudyError: if it or torchvision does not load, as one that is built for another torch.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise StudyError(
            "network.kind: 'timm' needs timm and a torchvision that is built for the installed torch; they "
            f"do not load: {type(error).__name__}: {' '.join(str(error).split())[:200]}. Install torch "
            "and torchvision from one index (https://pytorch.org/get-started)"
        ) from None
    return timm
