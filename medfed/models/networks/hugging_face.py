"""A vision architecture of Hugging Face's transformers for whole 2D images: the extra `huggingface`.

Wolf et al.: Transformers: state-of-the-art natural language processing, EMNLP 2020, arXiv:1910.03771; the
package is Apache-2.0. Models are built from their configuration: nothing is downloaded, and no code of a
model's repository runs. Weights come from a file by `start`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from medfed.errors import StudyError
from medfed.models.networks._hugging_face_catalogue import ARCHITECTURES, STAGES, WIDTHS, WINDOWS
from medfed.models.networks._monai_catalogue import DEPTHS, Entry, check_arguments, entry_of
from medfed.models.networks._network import SpatialNetwork

if TYPE_CHECKING:
    from torch import nn


class HuggingFace(SpatialNetwork, tag="hugging_face", frozen=True):
    """Vision architecture of Hugging Face's transformers for whole 2D images, grey or coloured.

    name: its model type (`model_type` of a model's config.json): convnext, convnextv2, dinov2,
    dinov2_with_registers, regnet, resnet, swin, swinv2, vit.  arguments: as in config.json, without channels,
    classes and image size, which the study says; the `image_size` of dinov2 is that of the weights (518 for
    those that are published), whose position embeddings are interpolated to data.patch.
    """

    serves = ("classify", "multilabel")
    packages: ClassVar[Mapping[str, str]] = {"transformers": "medfed[huggingface]"}

    name: str = "resnet"
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    # These architectures are for planes only.
    spatial_dims: Literal[2] = 2

    @property
    def head(self) -> str:  # type: ignore[override]  # it depends on the architecture that is named
        return self._entry.head

    @property
    def _entry(self) -> Entry:
        return entry_of(ARCHITECTURES, self.name, "an architecture of transformers")

    def check_size(self, size: tuple[int, ...] | None) -> None:
        entry = self._entry
        check_arguments(self.name, entry, self.arguments)
        self._check_stages()
        self._check_widths()
        if entry.sized:
            size = self.require_size(size)
        if entry.least_side > 1:
            self.check_min_side(size, entry.least_side)
        self.check_sides(size, entry.multiple(self.arguments))
        if "image_size" in entry.arguments:
            self._check_square(size)

    def _check_square(self, size: tuple[int, ...] | None) -> None:
        if size is not None and "image_size" not in self.arguments and len(set(size)) > 1:
            raise StudyError(
                f"network 'hugging_face': {self.name} is made for square images, and the patch has other "
                "sides; take a square data.patch, or give arguments: {image_size: ...}, the side that its "
                "weights were trained with"
            )

    def _check_stages(self) -> None:
        """Check that lists with one entry per stage are equally long, the defaults included.

        Transformers would leave out the last entries of the longer one.
        """
        checks = self._entry.arguments
        staged = [key for key in checks if checks[key] in (DEPTHS, WIDTHS) or key in self.arguments]
        lengths = {
            key: len(self.arguments[key]) if key in self.arguments else STAGES
            for key in staged
            if checks[key] in (DEPTHS, WIDTHS, WINDOWS)
        }
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{key}: {length}" for key, length in lengths.items())
            raise StudyError(
                f"network.arguments: {self.name} has one entry per stage in each of its lists; found {found} "
                f"({STAGES} are the default)"
            )

    def _check_widths(self) -> None:
        """Check that the heads share a layer's width evenly; transformers would leave out the rest of it."""
        given = self.arguments
        if "num_attention_heads" in self._entry.arguments:
            self.check_heads(given.get("hidden_size", 768), given.get("num_attention_heads", 12))
        if "embed_dim" in self._entry.arguments:
            for stage, heads in enumerate(given.get("num_heads", (3, 6, 12, 24))):
                self.check_heads(given.get("embed_dim", 96) * 2**stage, heads)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        config = self._config(inputs, outputs, size)
        from transformers import AutoModelForImageClassification

        from medfed.models.networks._hugging_face_logits import HuggingFaceLogits

        try:
            auto: Any = AutoModelForImageClassification  # untyped where it is installed
            model = auto.from_config(config)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
            raise self._refusal(error) from None
        return HuggingFaceLogits(_without_mask_token(model))

    def _config(self, inputs: int, outputs: int, size: tuple[int, ...] | None) -> Any:
        entry = self._entry
        own: dict[str, Any] = {entry.inputs: inputs, entry.outputs: outputs}
        if entry.sized and size is not None:
            own[entry.sized] = size[0] if len(set(size)) == 1 else size[::-1]  # rows, columns
        if self.name.startswith("convnext") and "depths" in self.arguments:
            own["num_stages"] = len(self.arguments["depths"])
        from transformers import AutoConfig

        try:
            return AutoConfig.for_model(self.name, **{**own, **self.arguments})
        except Exception as error:  # noqa: BLE001 - its strict configurations have errors of their own
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> StudyError:
        return StudyError(
            f"network: transformers cannot build {self.name} with these arguments: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        )


def _without_mask_token(model: nn.Module) -> nn.Module:
    """Remove DINOv2's token for the hidden patches of its pretraining, which would get no gradient."""
    for module in model.modules():
        if getattr(module, "mask_token", None) is not None:
            module.register_parameter("mask_token", None)
    return model
