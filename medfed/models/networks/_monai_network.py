"""What the two kinds for MONAI's own networks share: building one of the allow-list by its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from medfed.errors import StudyError
from medfed.models.networks._monai_catalogue import Entry, check_arguments, entry_of
from medfed.models.networks._network import Definition, SpatialNetwork, build_of_monai

if TYPE_CHECKING:
    from torch import nn

# The name that stands for "as the bundle of `start` says" until the study is read.
OF_BUNDLE = "bundle"


class MonaiNetwork(SpatialNetwork, frozen=True):
    """A network of MONAI by its own name and arguments; subclasses say which ones."""

    catalogue: ClassVar[Mapping[str, Entry]] = {}

    name: str = ""
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def head(self) -> str:  # type: ignore[override]  # it depends on the network that is named
        return entry_of(self.catalogue, self.name).head

    def _checked(self) -> Entry:
        if self.name == OF_BUNDLE:
            raise StudyError(
                "network.name: 'bundle' stands for the network of the bundle that `start` names; give one, "
                "or another name"
            )
        entry = entry_of(self.catalogue, self.name)
        check_arguments(self.name, entry, self.arguments)
        return entry

    def check_size(self, size: tuple[int, ...] | None) -> None:
        entry = self._checked()
        if entry.sized:
            self.require_size(size)
        if entry.least_side > 1:
            self.check_min_side(size, entry.least_side)
        self.check_sides(size, entry.multiple(self.arguments))

    def definition(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> Definition:
        entry = self._checked()
        own = {"spatial_dims": self.dims, entry.inputs: inputs, entry.outputs: outputs}
        if entry.sized:
            own[entry.sized] = self.require_size(size)  # type: ignore[assignment]
        downloads = {"pretrained": False} if "pretrained" in entry.arguments else {}
        return Definition(self.name, {**self.arguments, **own, **downloads})

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        return build_of_monai(self.definition(inputs, outputs, size))
