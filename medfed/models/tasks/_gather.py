"""Gathers rows of numbers from all processes of a hospital's training, each case once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def gather_rows(rows: Tensor, cases: Sequence[str], device: torch.device) -> Tensor:
    """Return the float64 rows (n, m) of all processes, on the CPU; a single process gets its rows back.

    Lightning's sampler repeats a few cases so that all processes have the same number. A case that an earlier
    process has is dropped from a later one, so a score over two processes equals the score over one. Cases
    are sent as hashes in an integer tensor, because `all_gather_object` would unpickle.
    """
    rows = rows.to("cpu", torch.float64)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    world = torch.distributed.get_world_size()
    if world == 1:
        return rows
    names = torch.tensor([_number(case) for case in cases], dtype=torch.int64)
    counts = _all_gather(torch.tensor([len(rows), rows.shape[1]]), world, device)
    longest = int(max(count[0] for count in counts))
    width = int(max(count[1] for count in counts))
    # A process without any case does not know the width of a row.
    padded_rows = torch.zeros(longest, width, dtype=torch.float64)
    padded_rows[: len(rows), : rows.shape[1]] = rows
    padded_names = torch.zeros(longest, dtype=torch.int64)
    padded_names[: len(names)] = names
    gathered = zip(
        counts, _all_gather(padded_rows, world, device), _all_gather(padded_names, world, device), strict=True
    )
    unique: list[Tensor] = []
    seen: set[int] = set()
    for count, some_rows, some_names in gathered:
        cases_there = [int(name) for name in some_names[: int(count[0])]]
        unique += [row for name, row in zip(cases_there, some_rows, strict=False) if name not in seen]
        seen.update(cases_there)
    return torch.stack(unique) if unique else rows.new_zeros(0, width)


def _number(case: str) -> int:
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big", signed=True)


def _all_gather(tensor: Tensor, world: int, device: torch.device) -> list[Tensor]:
    own = tensor.to(device)
    gathered = [torch.empty_like(own) for _ in range(world)]
    torch.distributed.all_gather(gathered, own)
    return [other.cpu() for other in gathered]
