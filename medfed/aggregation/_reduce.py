"""How a merge walks over updates: tensors outside, blocks inside, sites innermost, in float64.

Why this order. A hub's updates are files or differences that are computed when asked for, so a tensor is
fetched once a site and let go before the next: the memory is the old weights, the new ones and the tensors of
one name. Within a tensor a block of all sites is summed before the next one, so that the float64 sum stays in
the processor's cache and memory carries little more than the updates' own bytes; one running sum over whole
tensors reads and writes sixteen bytes for each four of an update.

Why the result has the same bits whoever answered first. Sites come in the order of their names, each block is
added in that order in float64, and nothing depends on how a difference came to be held (see `_add`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from medfed.aggregation._rule import is_running_statistic, newest, who
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights

# Sites that are added by one call: their rows, as float64, are summed with their factors by one matrix
# product, which reads and writes the sum once for all of them.
BATCH = 4

# Elements of a block: its float64 sum (1 MiB) and the rows of a batch (4 MiB) stay in a core's share of the
# last cache. Blocks of a quarter, which fit the cache before it, took a third longer: four times the calls,
# and shorter reads of each update.
BLOCK = 1 << 17

# Elements of the piece of a block that a rule works on. It is no more than torch leaves to one thread: each
# of a rule's thousands of small operations would start and join some, which on a machine with other work
# waits for the scheduler each time (a merge of 1 s then took minutes).
PIECE = 1 << 15

# What a float32 sum of a block's squares may lie in: above, float32 overflows; below, squares that it rounds
# to zero could count (131072 of at most 1e-38). Outside, the block is summed in float64.
SQUARES = (1e-26, 1e38)

# Shares that sum to one do so within a float64 rounding (1e-16) a site; this is room for thousands of sites.
SHARES_ROUNDING = 1e-12

# Elements of a block of all sites at once, for the rules that compare sites: 2 MiB in float64, however many
# sites.
BLOCK_OF_ALL = 1 << 18


@dataclass(frozen=True)
class Term:
    """One site's part of one tensor, flat: values, and what a whole model is counted from."""

    values: Tensor
    origin: Tensor | None

    @cached_property
    def array(self) -> np.ndarray | None:
        """The values as numpy sees them, which has no bfloat16."""
        return None if self.values.dtype == torch.bfloat16 else self.values.numpy()

    def values_into(self, out: Tensor, here: slice) -> Tensor:
        """Write the values, as they are, into `out` (float64)."""
        if self.array is None:
            return out.copy_(self.values[here])
        # numpy converts a third faster than torch, and slices ten times.
        np.copyto(out.numpy(), self.array[here])
        return out

    def delta_into(self, out: Tensor, here: slice) -> Tensor:
        """Write local minus global into `out` (float64)."""
        self.values_into(out, here)
        return out if self.origin is None else out.sub_(self.origin[here])

    def squares(self, here: slice, single: Tensor, double: Tensor) -> float:
        """Return the sum of the delta's squares; `single` and `double` are room for a block.

        Float32 models are summed in float32, which takes a third of the time: a difference is rounded
        by 6e-8 of itself, and a sum of n squares, in whatever order, by at most n times that (0.8 % for
        a block, seen: 1e-6).
        """
        if self._single_arrays is not None:
            values, origin = self._single_arrays
            delta = single[: here.stop - here.start]
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract(values[here], origin[here], out=delta.numpy())
            found = float(torch.dot(delta, delta))
            if SQUARES[0] < found < SQUARES[1]:
                return found
        exact = self.delta_into(double[: here.stop - here.start], here)
        return float(torch.dot(exact, exact))

    @cached_property
    def _single_arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        if self.origin is None or not self.values.dtype == self.origin.dtype == torch.float32:
            return None
        return self.values.numpy(), self.origin.numpy()

    def is_whole(self, own: Tensor, here: slice) -> bool:
        """Whether the values are all there is to add: a bare delta, or a model that started
        from the global one.
        """
        if self.origin is None or self.origin.data_ptr() == own.data_ptr():
            return True
        return _same(self.origin[here], own[here])

    def model_into(self, out: Tensor, here: slice, weights: Tensor) -> Tensor:
        """Write the site's own model, or the global one plus its delta, into `out` (float64)."""
        self.values_into(out, here)
        if self.origin is None:
            return out.add_(weights[here])
        if _same(self.origin[here], weights[here]):
            # Exact: no difference is taken, so one site alone gets its own weights back, bit for bit, at any
            # scale.
            return out
        return out.sub_(self.origin[here]).add_(weights[here])


def term(update: Update, name: str, tensor: Tensor) -> Term:
    """Fetch one tensor of one update, once.

    Raises:
        RuleError: if it is missing or has another shape than the global model's.
    """
    held, origin = update.delta, None
    try:
        if isinstance(held, Difference):
            # Its two sides, rather than their float64 difference: half the memory, and the local model stays
            # exact.
            values, origin = held.minuend[name], held.subtrahend[name]
        else:
            values = held[name]
    except KeyError:
        # Not `name in held`, for which a lazy mapping loads the tensor once more.
        raise RuleError(f"{who(update)}: '{name}' is missing; the global model has it") from None
    for found in (values, *(() if origin is None else (origin,))):
        if found.shape != tensor.shape:
            raise RuleError(
                f"{who(update)}: '{name}' has shape {tuple(found.shape)}, the global model has "
                f"{tuple(tensor.shape)}"
            )
    return Term(values.reshape(-1), None if origin is None else origin.reshape(-1))


@dataclass(frozen=True)
class Block:
    """A piece of one tensor: where it is, the global weights there, and the sites' factor-weighted sum.

    `total` sums whole models where a site's model is held and deltas where only a delta is; `held` is the sum
    of the former's factors. So the sum of deltas is `total - held * weights`, and the merged model `total +
    (1 - held) * weights`. Both work in place on `total`, which is only valid until the next block: ask for
    one of them, once. `room` is for the rule's own float64 values here, which end with the block, too: fresh
    memory for each of them took longer than the arithmetic.
    """

    name: str
    here: slice
    tensor: Tensor
    total: Tensor
    held: float
    room: list[Tensor] = field(default_factory=list)

    def weights(self) -> Tensor:
        """Return a copy of the global weights here, float64, to be written over last; it is valid
        until the next block.
        """
        return self._weights

    @cached_property
    def _weights(self) -> Tensor:
        return self.double(self.tensor)

    def double(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor's values here, float64; it is valid until the next block."""
        out = (
            self.room.pop()
            if self.room
            else torch.empty(self.here.stop - self.here.start, dtype=torch.float64)
        )
        return Term(tensor.reshape(-1), None).values_into(out, self.here)

    def delta(self) -> Tensor:
        """Return the factor-weighted sum of the sites' deltas, float64."""
        return self.total if self.held == 0 else self.total.add_(self._weights, alpha=-self.held)

    def model(self) -> Tensor:
        """Return the global weights plus that sum, float64."""
        # Where all sites' whole models are held the global weights cancel, but for the rounding of the
        # shares' sum.
        missing = 1.0 - self.held
        if abs(missing) < SHARES_ROUNDING:
            return self.total
        return self.total.add_(self.tensor.reshape(-1)[self.here], alpha=missing)


def sums(
    sites: Sequence[Update],
    factors: Sequence[float],
    weights: Weights,
    statistics: Sequence[float] | None = None,
) -> Iterator[Block]:
    """Yield the sum of the sites' deltas times their factors, block by block.

    `statistics` are the factors for batch norm's running statistics, for rules whose own don't sum to one.
    """
    everything = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    for name, tensor in weights.items():
        chosen = statistics if statistics is not None and is_running_statistic(name) else factors
        at_once = _at_once(sites, tensor, everything // 2)
        if at_once >= len(sites):
            yield from _sum_in_cache(sites, chosen, name, tensor)
        else:
            yield from _sum_in_memory(sites, chosen, name, tensor, at_once)


def _at_once(sites: Sequence[Update], tensor: Tensor, budget_bytes: int) -> int:
    # A tensor that a dict holds is there already; any other is loaded when asked for, and as many as fit half
    # a model are held at once, in whole batches so that the sum's bits are the same.
    lazy = any(not isinstance(_mapping(update), dict) for update in sites)
    if not lazy:
        return len(sites)
    return max(1, budget_bytes // max(1, tensor.numel() * tensor.element_size() * BATCH)) * BATCH


def _mapping(update: Update) -> Weights:
    return update.delta.minuend if isinstance(update.delta, Difference) else update.delta


def _sum_in_cache(
    sites: Sequence[Update], factors: Sequence[float], name: str, tensor: Tensor
) -> Iterator[Block]:
    own = tensor.reshape(-1)
    parts = [term(update, name, tensor) for update in sites]
    total = torch.empty(min(BLOCK, own.numel()), dtype=torch.float64)
    rows = _rows(own.numel())
    for here in _blocks(own.numel()):
        block = total[: here.stop - here.start]
        block.numpy().fill(0)  # on this thread
        held = _add(block, parts, factors, own, here, rows)
        yield from _pieces(name, here, tensor, block, held, rows)


def _sum_in_memory(
    sites: Sequence[Update], factors: Sequence[float], name: str, tensor: Tensor, at_once: int
) -> Iterator[Block]:
    # For a tensor so large that not all sites' fit half a model together. The same additions in the same
    # order.
    own = tensor.reshape(-1)
    total = torch.zeros(own.numel(), dtype=torch.float64)
    held = [0.0] * len(_blocks(own.numel()))
    rows = _rows(own.numel())
    for first in range(0, len(sites), at_once):
        parts = [term(update, name, tensor) for update in sites[first : first + at_once]]
        for index, here in enumerate(_blocks(own.numel())):
            held[index] += _add(total[here], parts, factors[first : first + at_once], own, here, rows)
        del parts
    for index, here in enumerate(_blocks(own.numel())):
        yield from _pieces(name, here, tensor, total[here], held[index], rows)


def _rows(elements: int) -> Tensor:
    return torch.empty(BATCH * min(BLOCK, elements), dtype=torch.float64)


def _pieces(
    name: str, here: slice, tensor: Tensor, total: Tensor, held: float, rows: Tensor
) -> Iterator[Block]:
    for piece in _blocks(len(total), PIECE):
        elements = piece.stop - piece.start
        # While a rule works on a piece, what the sites' values were in is free, and in the cache.
        room = list(rows[: BATCH * elements].view(BATCH, elements))
        where = slice(here.start + piece.start, here.start + piece.stop)
        yield Block(name, where, tensor, total[piece], held, room)


def _add(
    total: Tensor, parts: Sequence[Term], factors: Sequence[float], own: Tensor, here: slice, room: Tensor
) -> float:
    """Add the sites' block to `total`, and return how much of the global weights the sum then holds."""
    held = 0.0
    size = total.numel()
    rows = room[: BATCH * size].view(BATCH, size)
    arrays = rows.numpy()
    by = torch.tensor(factors, dtype=torch.float64)
    for first in range(0, len(parts), BATCH):
        batch = parts[first : first + BATCH]
        for number, part in enumerate(batch):
            if not part.is_whole(own, here):
                part.delta_into(rows[number], here)
                continue
            # A whole local model is added as it is, and the global one taken off once, for all sites: that
            # saves a pass over both for each site, and loses nothing.
            if part.array is None:
                rows[number].copy_(part.values[here])
            else:
                arrays[number] = part.array[here]
            held += 0.0 if part.origin is None else factors[first + number]
        total.addmv_(rows[: len(batch)].T, by[first : first + BATCH])
    return held


def _same(one: Tensor, two: Tensor) -> bool:
    # By value where not by address, so that a copy of the global weights (a hub that read them from a file)
    # gives the same bits as the weights themselves.
    if one.dtype != two.dtype:
        return False
    return one.data_ptr() == two.data_ptr() or torch.equal(one, two)


def _blocks(elements: int, size: int | None = None) -> list[slice]:
    size = BLOCK if size is None else size
    # A tensor without elements has one empty block, so that its name is written too.
    return [slice(first, min(first + size, elements)) for first in range(0, max(1, elements), size)]


def write(merged: dict[str, Tensor], block: Block, values: Tensor, sites: Sequence[Update]) -> None:
    """Round a block of float64 values to the global model's dtype, into `merged`.

    Raises:
        RuleError: if a value leaves that dtype's range, naming the site whose update is largest there.
    """
    write_as(merged, block, values, sites, block.tensor.dtype)


def write_as(
    merged: dict[str, Tensor], block: Block, values: Tensor, sites: Sequence[Update], dtype: torch.dtype
) -> None:
    """Round a block of float64 values to a dtype, into `merged`, as `write` does."""
    out = merged.get(block.name)
    if out is None:
        out = merged[block.name] = _fresh(block.tensor.shape, dtype)
    piece = out.view(-1)[block.here]
    piece.copy_(values)
    if piece.numel() == 0:
        return
    low, high = torch.aminmax(piece)
    if not (isfinite(float(low)) and isfinite(float(high))):
        raise RuleError(
            f"merge for round {newest(sites)}: '{block.name}' leaves the range of {dtype}; the largest "
            f"update of it is that of site '{_largest(sites, block)}': look at its training loss, or bound "
            f"updates (norm_bound)"
        )


def _fresh(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:  # which numpy has not
        return torch.empty(shape, dtype=dtype)
    # numpy asks for large pages, torch for small ones, whose first touch took as long as the merge
    # of two sites.
    return torch.from_numpy(np.empty(tuple(shape), str(dtype).removeprefix("torch.")))


def _largest(sites: Sequence[Update], block: Block) -> str:
    def size(update: Update) -> float:
        part = term(update, block.name, block.tensor)
        out = torch.empty(block.here.stop - block.here.start, dtype=torch.float64)
        found = float(part.delta_into(out, block.here).abs().max())
        return found if found == found else float("inf")

    return max(sites, key=size).site


def matrices(
    sites: Sequence[Update], weights: Weights, models: bool = True, extra: Weights | None = None
) -> Iterator[tuple[Block, Tensor]]:
    """Yield blocks of all sites together: (sites, elements) float64, one site a row, in the order of names.

    Rows are the sites' models, or their deltas where `models` is False; `extra` adds one row, zero for the
    names it lacks. Rows are valid until the next block, and may be written to. All sites' tensors of one name
    are held at once: a rule that compares sites can't do with less.
    """
    count = len(sites) + (extra is not None)
    columns = max(1, BLOCK_OF_ALL // count)
    for name, tensor in weights.items():
        own = tensor.reshape(-1)
        parts = [term(update, name, tensor) for update in sites]
        last = extra[name].reshape(-1) if extra is not None and name in extra else None
        room = torch.zeros(count * min(columns, own.numel()), dtype=torch.float64)
        for here in _blocks(own.numel(), columns):
            size = here.stop - here.start
            rows = room[: count * size].view(count, size)
            for row, part in zip(rows, parts, strict=False):
                if models:
                    part.model_into(row, here, own)
                else:
                    part.delta_into(row, here)
            if extra is not None:
                rows[-1].copy_(last[here]) if last is not None else rows[-1].zero_()
            yield Block(name, here, tensor, rows, 0.0), rows


def squared_norms(sites: Sequence[Update], weights: Weights) -> list[float]:
    """Return the squared Euclidean norm of each site's delta over all tensors together.

    Blocks are summed in float64; within a block see `Term.squares`.

    Raises:
        RuleError: naming the first site whose norm is not finite.
    """
    found = [0.0] * len(sites)
    everything = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    for name, tensor in weights.items():
        elements = tensor.numel()
        double = torch.empty(min(BLOCK, elements), dtype=torch.float64)
        single = torch.empty(len(double))
        at_once = _at_once(sites, tensor, everything // 2)
        for first in range(0, len(sites), at_once):
            parts = [term(update, name, tensor) for update in sites[first : first + at_once]]
            for here in _blocks(elements):
                for number, part in enumerate(parts, first):
                    found[number] += part.squares(here, single, double)
            del parts
    for update, square in zip(sites, found, strict=True):
        if not isfinite(square):
            raise RuleError(f"{who(update)}: the norm of its delta is not finite; training diverged there")
    return found


def part_of(group: Weights, block: Block) -> Tensor:
    """Return a copy of the block of a state's tensor, float64; it is valid until the next block."""
    return block.double(group[block.name])
