"""The interface of a compression: a frozen record with `encode` at the site and `decode` at the hub."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import msgspec
import torch
from torch import Tensor

from medfed.errors import UpdateError, WireError
from medfed.registry import Kind, kind_of
from medfed.wire.update import Encoded
from medfed.wire.weights import Weights

# What a compression keeps from round to round: groups of named tensors, so that a checkpoint can hold it.
State = Mapping[str, Weights]

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class Compression(Kind, frozen=True):
    """A lossless or lossy encoding of tensors in fewer bytes."""

    folder: ClassVar[str] = "compression"

    # The groups of plain floats that a further compression may shorten.
    chainable: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        # msgspec checks these bounds in a study file, but not in a record that Python code makes.
        for name, hint in _bounded_fields(type(self)).items():
            try:
                msgspec.convert(getattr(self, name), hint)
            except msgspec.ValidationError as error:
                raise ValueError(f"{kind_of(self)}.{name}: {error}") from None

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        """Return the tensors in fewer bytes, and the new state; the first round's state is empty.

        Raises:
            UpdateError: naming a tensor with values that are not finite.
        """
        raise NotImplementedError

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        """Return tensors (float32) with the original names and shapes.

        Raises:
            WireError: if `encode` cannot have returned these groups and this header.
        """
        raise NotImplementedError


@cache
def _bounded_fields(record: type[Compression]) -> dict[str, Any]:
    hints = get_type_hints(record, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def flatten(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor's values as a flat float32 tensor.

    Raises:
        UpdateError: if a value is not finite or exceeds float32's range.
    """
    values = tensor.detach().reshape(-1).to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise UpdateError(
            f"'{name}' can't be compressed: it has values that are not finite in float32; training diverged: "
            f"a lower learning rate or gradient clipping (train.clip) helps"
        )
    return values


def tensor_shapes(weights: Weights) -> dict[str, list[int]]:
    """Return the tensors' shapes for a header."""
    return {name: list(tensor.shape) for name, tensor in weights.items()}


# No tensor of a model is larger: a header that claims more is damaged, and must not make the hub reserve that
# memory.
MAX_ELEMENTS = 1 << 33


def header_shapes(encoded: Encoded) -> dict[str, list[int]]:
    """Return the shapes that a header holds.

    Raises:
        WireError: if it holds no valid shapes.
    """
    shapes = encoded.header.get("shapes")
    if not isinstance(shapes, dict) or not all(_is_shape(shape) for shape in shapes.values()):
        raise WireError(
            "a compressed update's header has no table of shapes; do site and hub run the same medfed?"
        )
    return shapes


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        return False
    return count_elements(shape) <= MAX_ELEMENTS


def count_elements(shape: Sequence[int]) -> int:
    """Return how many elements a shape holds."""
    return math.prod(shape)


@dataclass(frozen=True)
class Parts:
    """What a received update holds of one tensor."""

    encoded: Encoded
    name: str
    shape: list[int]

    @property
    def count(self) -> int:
        """How many elements the tensor has."""
        return count_elements(self.shape)

    def read(self, group: str, count: int, dtype: torch.dtype) -> Tensor:
        """Return the tensor's part of an encoded group, flat.

        Raises:
            WireError: if its dtype or number of elements is another, naming what was found and expected.
        """
        tensors = self.encoded.groups.get(group, {})
        if self.name not in tensors:
            raise WireError(f"a compressed update has no '{self.name}' in its group '{group}'")
        part = tensors[self.name].reshape(-1)
        if part.dtype != dtype or part.numel() != count:
            raise WireError(
                f"a compressed update's '{self.name}' of group '{group}' holds {part.numel()} {part.dtype}, "
                f"expected {count} {dtype}"
            )
        return part


def decode_each(encoded: Encoded, decode: Callable[[Parts], Tensor]) -> dict[str, Tensor]:
    """Return every tensor of a received update, decoded, in its shape.

    Raises:
        WireError: naming a tensor that decodes to values that are not finite.
    """
    return {
        name: check_finite(name, decode(Parts(encoded, name, shape))).view(shape)
        for name, shape in header_shapes(encoded).items()
    }


def check_finite(name: str, values: Tensor) -> Tensor:
    """Return decoded values if all are finite.

    Raises:
        WireError: naming the tensor.
    """
    if not bool(torch.isfinite(values).all()):
        raise WireError(f"a compressed update's '{name}' decodes to values that are not finite")
    return values
