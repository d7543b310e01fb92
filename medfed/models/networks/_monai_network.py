"""What the two kinds for MONAI's own networks share: building one of the allow-list by its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from medfed.errors import StudyError
from medfed.models.networks._monai_catalogue import Entry, as_tuples, check_arguments, entry_of
from medfed.models.networks._network import SpatialNetwork, drop_unused_norms

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

    def definition(
        self, inputs: int, outputs: int, size: tuple[int, ...] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the name and arguments by which MONAI builds it."""
        entry = self._checked()
        own = {"spatial_dims": self.dims, entry.inputs: inputs, entry.outputs: outputs}
        if entry.sized:
            own[entry.sized] = self.require_size(size)  # type: ignore[assignment]
        downloads = {"pretrained": False} if "pretrained" in entry.arguments else {}
        return self.name, {**self.arguments, **own, **downloads}

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        name, arguments = self.definition(inputs, outputs, size)
        return build_of_monai(name, arguments)


def build_of_monai(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network of MONAI; its name must be one of the allow-list.

    Raises:
        StudyError: if MONAI refuses the arguments.
    """
    import monai.networks.nets

    try:
        network: nn.Module = getattr(monai.networks.nets, name)(
            **{key: as_tuples(value) for key, value in arguments.items()}
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        AssertionError,
        RuntimeError,
        IndexError,
    ) as error:
        raise StudyError(
            f"network: MONAI cannot build {name} with these arguments: {type(error).__name__}: "
            f"{str(error)[:200]}"
        ) from None
    return drop_unused_norms(network)
