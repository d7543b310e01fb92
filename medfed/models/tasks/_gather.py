"""Rows of numbers from every process of a hospital's training, each case once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def gather_rows(rows: Tensor, cases: Sequence[str], device: torch.device) -> Tensor:
    """Return the float64 rows (n, m) of all processes together, on the CPU; alone, the rows as they are.

    Lightning's sampler repeats a few cases so that each process has as many; a case that an earlier process
    has is dropped from a later one, so a score over two processes equals the score over one. Cases cross as
    hashes in a tensor of numbers: `all_gather_object` would unpickle.
    """
    rows = rows.to("cpu", torch.float64)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    world = torch.distributed.get_world_size()
    if world == 1:
        return rows
    names = torch.tensor([_number(case) for case in cases], dtype=torch.int64)
    counts = _all(torch.tensor([len(rows), rows.shape[1]]), world, device)
    longest = int(max(count[0] for count in counts))
    width = int(max(count[1] for count in counts))
    # A process without any case doesn't know how wide a row is.
    padded_rows = torch.zeros(longest, width, dtype=torch.float64)
    padded_rows[: len(rows), : rows.shape[1]] = rows
    padded_names = torch.zeros(longest, dtype=torch.int64)
    padded_names[: len(names)] = names
    gathered = zip(counts, _all(padded_rows, world, device), _all(padded_names, world, device), strict=True)
    kept: list[Tensor] = []
    seen: set[int] = set()
    for count, some_rows, some_names in gathered:
        here = [int(name) for name in some_names[: int(count[0])]]
        kept += [row for name, row in zip(here, some_rows, strict=False) if name not in seen]
        seen.update(here)
    return torch.stack(kept) if kept else rows.new_zeros(0, width)


def _number(case: str) -> int:
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big", signed=True)


def _all(tensor: Tensor, world: int, device: torch.device) -> list[Tensor]:
    mine = tensor.to(device)
    gathered = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(gathered, mine)
    return [other.cpu() for other in gathered]
