"""One tensor of one site's update: its values, and how they are read section by section as float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medfed.aggregation._updates import describe
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

# The range in which a float32 sum of a block's squares is trusted: above it float32 overflows; below it,
# squares that float32 rounds to zero could matter (131072 of at most 1e-38). Outside, float64 is used.
FLOAT32_SQUARES_RANGE = (1e-26, 1e38)


@dataclass(frozen=True)
class SiteTensor:
    """One site's part of one tensor, flat.

    `values` are the local model's where `origin` holds the global model it started from, else a bare delta.
    """

    values: Tensor
    origin: Tensor | None

    @cached_property
    def array(self) -> np.ndarray | None:
        """The values as a numpy array, or None for bfloat16, which numpy lacks."""
        return None if self.values.dtype == torch.bfloat16 else self.values.numpy()

    def values_into(self, out: Tensor, section: slice) -> Tensor:
        """Write the values, as they are, into `out` (float64)."""
        if self.array is None:
            return out.copy_(self.values[section])
        # numpy converts a third faster than torch, and slices ten times faster.
        np.copyto(out.numpy(), self.array[section])
        return out

    def delta_into(self, out: Tensor, section: slice) -> Tensor:
        """Write local minus global into `out` (float64)."""
        self.values_into(out, section)
        return out if self.origin is None else out.sub_(self.origin[section])

    def squares(self, section: slice, single: Tensor, double: Tensor) -> float:
        """Return the sum of the delta's squares; `single` and `double` are scratch memory for a block.

        Float32 models are summed in float32, which takes a third of the time. A difference is rounded by 6e-8
        of itself, and a sum of n squares, in whatever order, by at most n times that (0.8 % for a block;
        observed: 1e-6).
        """
        if self._single_arrays is not None:
            values, origin = self._single_arrays
            delta = single[: section.stop - section.start]
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract(values[section], origin[section], out=delta.numpy())
            total = float(torch.dot(delta, delta))
            if FLOAT32_SQUARES_RANGE[0] < total < FLOAT32_SQUARES_RANGE[1]:
                return total
        exact = self.delta_into(double[: section.stop - section.start], section)
        return float(torch.dot(exact, exact))

    @cached_property
    def _single_arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        if self.origin is None or not self.values.dtype == self.origin.dtype == torch.float32:
            return None
        return self.values.numpy(), self.origin.numpy()

    def is_summed_whole(self, global_values: Tensor, section: slice) -> bool:
        """Whether the values can be summed as they are: a bare delta, or a model that started from these."""
        if self.origin is None or self.origin.data_ptr() == global_values.data_ptr():
            return True
        return _equal_values(self.origin[section], global_values[section])

    def model_into(self, out: Tensor, section: slice, global_values: Tensor) -> Tensor:
        """Write the site's own model, or the global one plus its delta, into `out` (float64)."""
        self.values_into(out, section)
        if self.origin is None:
            return out.add_(global_values[section])
        if _equal_values(self.origin[section], global_values[section]):
            # Exact: without a difference, one site alone gets its own weights back, bit for bit,
            # at any scale.
            return out
        return out.sub_(self.origin[section]).add_(global_values[section])


def site_tensor(update: Update, name: str, tensor: Tensor) -> SiteTensor:
    """Fetch one tensor of one update, once.

    Raises:
        RuleError: if it is missing or its shape differs from the global model's.
    """
    delta, origin = update.delta, None
    try:
        if isinstance(delta, Difference):
            # Its two sides instead of their float64 difference: half the memory, and the local
            # model stays exact.
            values, origin = delta.minuend[name], delta.subtrahend[name]
        else:
            values = delta[name]
    except KeyError:
        # Not `name in delta`, which would load the tensor of a lazy mapping a second time.
        raise RuleError(f"{describe(update)}: '{name}' is missing; the global model has it") from None
    for part in (values, *(() if origin is None else (origin,))):
        if part.shape != tensor.shape:
            raise RuleError(
                f"{describe(update)}: '{name}' has shape {tuple(part.shape)}, the global model has "
                f"{tuple(tensor.shape)}"
            )
    return SiteTensor(values.reshape(-1), None if origin is None else origin.reshape(-1))


def _equal_values(one: Tensor, two: Tensor) -> bool:
    # By value if not by address, so that a copy of the global weights (a hub that read them from a file)
    # gives the same bits as the weights themselves.
    if one.dtype != two.dtype:
        return False
    return one.data_ptr() == two.data_ptr() or torch.equal(one, two)
