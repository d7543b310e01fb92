"""Block-wise float64 reduction over the tensors of all sites: tensors outside,
blocks inside, sites innermost.

Why this order. A hub's updates are files, or differences computed on demand, so a tensor is fetched once from
each site and released before the next one: the memory is the old weights, the new ones and the tensors of one
name. Within a tensor, one block is summed over all sites before the next block, so the float64 sum stays in
the processor's cache and the memory bus carries little more than the updates' own bytes. A running sum over
whole tensors would read and write sixteen bytes for every four of an update.

Why the order of arrival changes no bit. Sites are taken in the order of their names, each block is added in
that order in float64, and nothing depends on whether a site holds a model or a delta (see `_add`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from medfed.aggregation._site_tensor import SiteTensor, site_tensor
from medfed.aggregation._updates import describe, newest_round
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights, is_running_statistic, size_in_bytes

# Sites added by one call: their rows, as float64, are summed with their factors by one matrix product, which
# reads and writes the sum once for all of them.
BATCH_SITES = 4

# Elements of a block: its float64 sum (1 MiB) and the rows of a batch (4 MiB) stay in a core's share of the
# last-level cache. Blocks of a quarter, which fit the level-2 cache, took a third longer: four times the
# calls, and shorter reads of each update.
BLOCK_ELEMENTS = 1 << 17

# Elements of the piece of a block that a rule works on: no more than torch leaves to one thread. Otherwise
# each of a rule's thousands of small operations starts and joins threads, which on a busy machine waits for
# the scheduler each time (a merge of 1 s then took minutes).
PIECE_ELEMENTS = 1 << 15

# Shares that sum to one do so within one float64 rounding (1e-16) per site; this allows thousands of sites.
SHARES_ROUNDING = 1e-12

# Elements of a block of all sites at once, for rules that compare sites: 2 MiB in float64 for any
# number of sites.
STACKED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Block:
    """A section of one tensor, with the factor-weighted sum of the sites' values.

    `total` sums whole models where an update holds a model, and deltas where it holds a delta; `model_mass`
    is the sum of the models' factors. So the sum of deltas is `total - model_mass * weights`, and the
    merged model is `total + (1 - model_mass) * weights`. Both are computed in place on `total`, which is
    valid until the next
    block: ask for one of them, once. `scratch` holds the rule's own float64 values of this section, because
    allocating fresh memory took longer than the arithmetic; it is reused by the next block, too.
    """

    name: str
    section: slice
    tensor: Tensor
    total: Tensor
    model_mass: float
    scratch: list[Tensor] = field(default_factory=list)

    def weights(self) -> Tensor:
        """Return a float64 copy of the global weights, valid until the next block; write to it last."""
        return self._weights

    @cached_property
    def _weights(self) -> Tensor:
        return self.double(self.tensor)

    def double(self, tensor: Tensor) -> Tensor:
        """Return a float64 copy of a tensor's values in this section, valid until the next block."""
        out = (
            self.scratch.pop()
            if self.scratch
            else torch.empty(self.section.stop - self.section.start, dtype=torch.float64)
        )
        return SiteTensor(tensor.reshape(-1), None).values_into(out, self.section)

    def delta(self) -> Tensor:
        """Return the factor-weighted sum of the sites' deltas, float64."""
        return self.total if self.model_mass == 0 else self.total.add_(self._weights, alpha=-self.model_mass)

    def model(self) -> Tensor:
        """Return the global weights plus that sum, float64."""
        # If all sites hold whole models, the global weights cancel up to the rounding of the shares' sum.
        missing = 1.0 - self.model_mass
        if abs(missing) < SHARES_ROUNDING:
            return self.total
        return self.total.add_(self.tensor.reshape(-1)[self.section], alpha=missing)


def weighted_sum_blocks(
    sites: Sequence[Update],
    factors: Sequence[float],
    weights: Weights,
    statistics: Sequence[float] | None = None,
) -> Iterator[Block]:
    """Yield the sum of the sites' deltas times their factors, block by block.

    `statistics` are the factors for batch norm's running statistics, for rules whose factors
    don't sum to one.
    """
    model_bytes = size_in_bytes(weights)
    for name, tensor in weights.items():
        tensor_factors = statistics if statistics is not None and is_running_statistic(name) else factors
        sites_in_memory = _sites_in_memory(sites, tensor, model_bytes // 2)
        if sites_in_memory >= len(sites):
            yield from _sum_in_cache(sites, tensor_factors, name, tensor)
        else:
            yield from _sum_in_memory(sites, tensor_factors, name, tensor, sites_in_memory)


def _sites_in_memory(sites: Sequence[Update], tensor: Tensor, budget_bytes: int) -> int:
    # The tensors of a dict are in memory already. Those of a lazy mapping are loaded on access: as many at
    # once as fit into half a model, in whole batches so that the sum has the same bits.
    lazy = any(not isinstance(_mapping(update), dict) for update in sites)
    if not lazy:
        return len(sites)
    return max(1, budget_bytes // max(1, tensor.numel() * tensor.element_size() * BATCH_SITES)) * BATCH_SITES


def _mapping(update: Update) -> Weights:
    return update.delta.minuend if isinstance(update.delta, Difference) else update.delta


def _sum_in_cache(
    sites: Sequence[Update], factors: Sequence[float], name: str, tensor: Tensor
) -> Iterator[Block]:
    global_values = tensor.reshape(-1)
    parts = [site_tensor(update, name, tensor) for update in sites]
    total = torch.empty(min(BLOCK_ELEMENTS, global_values.numel()), dtype=torch.float64)
    rows = _rows(global_values.numel())
    for section in _blocks(global_values.numel()):
        block = total[: section.stop - section.start]
        block.numpy().fill(0)  # on this thread
        model_mass = _add(block, parts, factors, global_values, section, rows)
        yield from _pieces(name, section, tensor, block, model_mass, rows)


def _sum_in_memory(
    sites: Sequence[Update], factors: Sequence[float], name: str, tensor: Tensor, sites_in_memory: int
) -> Iterator[Block]:
    # For a tensor so large that all sites' together exceed half a model: the same additions in
    # the same order.
    global_values = tensor.reshape(-1)
    total = torch.zeros(global_values.numel(), dtype=torch.float64)
    model_mass = [0.0] * len(_blocks(global_values.numel()))
    rows = _rows(global_values.numel())
    for first in range(0, len(sites), sites_in_memory):
        parts = [site_tensor(update, name, tensor) for update in sites[first : first + sites_in_memory]]
        for index, section in enumerate(_blocks(global_values.numel())):
            share = factors[first : first + sites_in_memory]
            model_mass[index] += _add(total[section], parts, share, global_values, section, rows)
        del parts
    for index, section in enumerate(_blocks(global_values.numel())):
        yield from _pieces(name, section, tensor, total[section], model_mass[index], rows)


def _rows(elements: int) -> Tensor:
    return torch.empty(BATCH_SITES * min(BLOCK_ELEMENTS, elements), dtype=torch.float64)


def _pieces(
    name: str, section: slice, tensor: Tensor, total: Tensor, model_mass: float, rows: Tensor
) -> Iterator[Block]:
    for piece in _blocks(len(total), PIECE_ELEMENTS):
        elements = piece.stop - piece.start
        # While a rule works on a piece, the memory of the sites' values is free, and still in the cache.
        scratch = list(rows[: BATCH_SITES * elements].view(BATCH_SITES, elements))
        span = slice(section.start + piece.start, section.start + piece.stop)
        yield Block(name, span, tensor, total[piece], model_mass, scratch)


def _add(
    total: Tensor,
    parts: Sequence[SiteTensor],
    factors: Sequence[float],
    global_values: Tensor,
    section: slice,
    scratch: Tensor,
) -> float:
    """Add the sites' block to `total`, and return the sum of the factors of whole models in it."""
    model_mass = 0.0
    size = total.numel()
    rows = scratch[: BATCH_SITES * size].view(BATCH_SITES, size)
    arrays = rows.numpy()
    factor_column = torch.tensor(factors, dtype=torch.float64)
    for first in range(0, len(parts), BATCH_SITES):
        batch = parts[first : first + BATCH_SITES]
        for number, part in enumerate(batch):
            if not part.is_summed_whole(global_values, section):
                part.delta_into(rows[number], section)
                continue
            # A whole local model is added as it is, and the global model subtracted once for all sites: this
            # saves a pass over both for each site, and is as exact.
            if part.array is None:
                rows[number].copy_(part.values[section])
            else:
                arrays[number] = part.array[section]
            model_mass += 0.0 if part.origin is None else factors[first + number]
        total.addmv_(rows[: len(batch)].T, factor_column[first : first + BATCH_SITES])
    return model_mass


def _blocks(elements: int, size: int | None = None) -> list[slice]:
    size = BLOCK_ELEMENTS if size is None else size
    # A tensor without elements gets one empty block, so that its name is written, too.
    return [slice(first, min(first + size, elements)) for first in range(0, max(1, elements), size)]


def add_weighted_deltas(
    sites: Sequence[Update],
    factors: Sequence[float],
    weights: Weights,
    statistics: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return the global weights plus the factor-weighted sum of the sites' deltas, with the weights' dtypes.

    Raises:
        RuleError: if a value leaves its dtype's range, or a tensor is missing or of another shape.
    """
    merged: dict[str, Tensor] = {}
    for block in weighted_sum_blocks(sites, factors, weights, statistics):
        write_block(merged, block, block.model(), sites)
    return merged


def stepped_blocks(
    sites: Sequence[Update], factors: Sequence[float], weights: Weights, merged: dict[str, Tensor]
) -> Iterator[Block]:
    """Yield the blocks of the factor-weighted sum that a server step changes.

    Those of batch norm's running statistics are written into `merged` as they are, since a step could leave
    the sites' range or make a variance negative.
    """
    for block in weighted_sum_blocks(sites, factors, weights):
        if is_running_statistic(block.name):
            write_block(merged, block, block.model(), sites)
        else:
            yield block


def write_block(
    merged: dict[str, Tensor],
    block: Block,
    values: Tensor,
    sites: Sequence[Update],
    dtype: torch.dtype | None = None,
) -> None:
    """Round a block of float64 values to `dtype`, by default the global model's, and write it into `merged`.

    Raises:
        RuleError: if a value leaves the dtype's range, naming the site with the largest update there.
    """
    dtype = block.tensor.dtype if dtype is None else dtype
    out = merged.get(block.name)
    if out is None:
        out = merged[block.name] = _fresh(block.tensor.shape, dtype)
    piece = out.view(-1)[block.section]
    piece.copy_(values)
    if piece.numel() == 0:
        return
    low, high = torch.aminmax(piece)
    if not (isfinite(float(low)) and isfinite(float(high))):
        raise RuleError(
            f"merge for round {newest_round(sites)}: '{block.name}' leaves the range of {dtype}; site "
            f"'{_largest(sites, block)}' sent the largest update of it: check its training loss, or "
            f"bound updates (norm_bound)"
        )


def _fresh(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:  # which numpy lacks
        return torch.empty(shape, dtype=dtype)
    # numpy allocates large pages, torch small ones, whose first touch took as long as merging two sites.
    return torch.from_numpy(np.empty(tuple(shape), str(dtype).removeprefix("torch.")))


def _largest(sites: Sequence[Update], block: Block) -> str:
    def size(update: Update) -> float:
        part = site_tensor(update, block.name, block.tensor)
        out = torch.empty(block.section.stop - block.section.start, dtype=torch.float64)
        largest = float(part.delta_into(out, block.section).abs().max())
        return largest if largest == largest else float("inf")

    return max(sites, key=size).site


def stacked_blocks(
    sites: Sequence[Update], weights: Weights, models: bool = True, extra: Weights | None = None
) -> Iterator[tuple[Block, Tensor]]:
    """Yield blocks of all sites together: (sites, elements) float64, one row per site, in the order of names.

    Rows are the sites' models, or their deltas if `models` is False; `extra` adds one row, zero for the names
    it lacks. Rows are valid until the next block and may be overwritten. All sites' tensors of one name are
    in memory at once, which a rule that compares sites cannot avoid.
    """
    count = len(sites) + (extra is not None)
    columns = max(1, STACKED_ELEMENTS // count)
    for name, tensor in weights.items():
        global_values = tensor.reshape(-1)
        parts = [site_tensor(update, name, tensor) for update in sites]
        last = extra[name].reshape(-1) if extra is not None and name in extra else None
        scratch = torch.zeros(count * min(columns, global_values.numel()), dtype=torch.float64)
        for section in _blocks(global_values.numel(), columns):
            size = section.stop - section.start
            rows = scratch[: count * size].view(count, size)
            for row, part in zip(rows, parts, strict=False):
                if models:
                    part.model_into(row, section, global_values)
                else:
                    part.delta_into(row, section)
            if extra is not None:
                rows[-1].copy_(last[section]) if last is not None else rows[-1].zero_()
            yield Block(name, section, tensor, rows, 0.0), rows


def squared_norms(sites: Sequence[Update], weights: Weights) -> list[float]:
    """Return the squared Euclidean norm of each site's delta over all tensors together.

    Blocks are summed in float64; within a block see `SiteTensor.squares`.

    Raises:
        RuleError: naming the first site whose norm is not finite.
    """
    norms = [0.0] * len(sites)
    model_bytes = size_in_bytes(weights)
    for name, tensor in weights.items():
        elements = tensor.numel()
        double = torch.empty(min(BLOCK_ELEMENTS, elements), dtype=torch.float64)
        single = torch.empty(len(double))
        sites_in_memory = _sites_in_memory(sites, tensor, model_bytes // 2)
        for first in range(0, len(sites), sites_in_memory):
            parts = [site_tensor(update, name, tensor) for update in sites[first : first + sites_in_memory]]
            for section in _blocks(elements):
                for number, part in enumerate(parts, first):
                    norms[number] += part.squares(section, single, double)
            del parts
    for update, square in zip(sites, norms, strict=True):
        if not isfinite(square):
            raise RuleError(
                f"{describe(update)}: the norm of its delta is not finite; training diverged there"
            )
    return norms
