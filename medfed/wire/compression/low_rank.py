"""Low rank: each matrix is sent as the product of two thin matrices.

Vogels, Karimireddy, Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization,
NeurIPS 2019, arXiv:1905.13727, algorithm 1: P = M Q, orthonormalised; Q = M' P; M is about P Q'. One step
of power iteration per round, starting from the last round's Q, converges to the leading singular vectors.
Departures: each site compresses its own delta and keeps its own Q, where the paper's workers average P and Q
(which a rule that compares sites could not use); a tensor that two thin matrices would not shorten is sent
unchanged.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from medfed.wire.compression._compression import (
    Compression,
    Parts,
    PositiveInt,
    State,
    count_elements,
    decode_each,
    flatten,
    tensor_shapes,
)
from medfed.wire.update import Encoded
from medfed.wire.weights import Weights


class LowRank(Compression, frozen=True, tag="low_rank"):
    """Each tensor, as a matrix of its first axis by the others, is approximated with rank `rank`."""

    rank: PositiveInt = 4
    seed: int = 0

    chainable: ClassVar[tuple[str, ...]] = ("left", "right", "plain")

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        groups: dict[str, dict[str, Tensor]] = {"left": {}, "right": {}, "plain": {}}
        start = state.get("right", {})
        for name, tensor in weights.items():
            values = flatten(name, tensor)
            if not self._shortens(list(tensor.shape)):
                groups["plain"][name] = values
                continue
            matrix = values.view(tensor.shape[0], -1).double()
            left, right = self._factors(matrix, start.get(name))
            groups["left"][name], groups["right"][name] = left.float(), right.float()
        after = {"right": {name: right.clone() for name, right in groups["right"].items()}}
        return Encoded(groups, {"shapes": tensor_shapes(weights)}), after

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        return decode_each(encoded, self._decode_tensor)

    def _decode_tensor(self, parts: Parts) -> Tensor:
        shape = parts.shape
        if not self._shortens(shape):
            return parts.read("plain", parts.count, torch.float32)
        left, right = (
            parts.read(side, size * self.rank, torch.float32).view(size, self.rank).double()
            for side, size in (("left", shape[0]), ("right", count_elements(shape[1:])))
        )
        largest = torch.finfo(torch.float32).max
        return (left @ right.T).clamp_(-largest, largest).float()

    def _shortens(self, shape: list[int]) -> bool:
        if len(shape) < 2 or count_elements(shape) == 0:
            return False
        rows, columns = shape[0], count_elements(shape[1:])
        return (rows + columns) * self.rank < rows * columns

    def _factors(self, matrix: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor]:
        # Scaled to a maximum of 1, so that products of 1e30 and 1e30 stay in range and factors fit float32.
        size = matrix.abs().max()
        if size == 0:
            fresh = self._start(matrix.shape[1]) if right is None else right.double()
            # A zero left factor means zero; the right factor is kept for the next round.
            return torch.zeros(matrix.shape[0], self.rank, dtype=torch.float64), fresh
        scaled = matrix / size
        right = self._start(matrix.shape[1]) if right is None or not bool(right.any()) else right.double()
        left, _ = torch.linalg.qr(scaled @ (right / right.abs().max()))
        return left * size.sqrt(), (scaled.T @ left) * size.sqrt()

    def _start(self, columns: int) -> Tensor:
        # Any matrix in general position will do; this one is the same at every site and on every machine.
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(columns, self.rank, generator=generator, dtype=torch.float64)
