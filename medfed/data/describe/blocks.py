"""Named blocks of whole numbers as one vector of floats, which hospitals add without an error.

A whole number is written in digits to the base 2^32, each digit with the number's sign. Floats of 64 bits add
such digits of a million hospitals exactly, so that the sum is the same in any order, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfed.errors import DataError

BASE = 1 << 32

# A block's numbers by its name.
Values = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Block:
    """Some whole numbers of one kind.

    of: `flags` are 0 or 1 per hospital; `patients` and `cases` are groups or bins, of which the hospital's
    patients or cases are in at most one each; `counts` are counts of anything; `sums` may be negative.
    digits: how many digits each number has.
    """

    name: str
    size: int
    of: Literal["flags", "patients", "cases", "counts", "sums"]
    digits: int = 1

    @property
    def length(self) -> int:
        """How many floats it takes."""
        return self.size * self.digits


def length_of(blocks: Sequence[Block]) -> int:
    """Return how many floats these blocks take."""
    return sum(block.length for block in blocks)


def encode(blocks: Sequence[Block], values: Values) -> NDArray[np.float64]:
    """Return the blocks' numbers as one vector of floats; a block without values is zeros.

    Raises:
        DataError: for a number that has more digits than its block.
    """
    parts = [np.zeros(0)]
    for block in blocks:
        numbers = values.get(block.name) or [0] * block.size
        assert len(numbers) == block.size, block.name
        parts.append(np.array([_digits(int(one), block) for one in numbers], np.float64).reshape(-1))
    return np.concatenate(parts)


def _digits(number: int, block: Block) -> list[int]:
    sign, left, digits = (-1 if number < 0 else 1), abs(number), []
    for _ in range(block.digits):
        left, digit = divmod(left, BASE)
        digits.append(sign * digit)
    if left:
        raise DataError(
            f"a number of '{block.name}' has more than {32 * block.digits} bits; no hospital's data give "
            "such a sum: look for a value far out of range"
        )
    return digits


def decode(
    blocks: Sequence[Block], vector: NDArray[np.floating[Any]], sites: int = 1
) -> dict[str, list[int]]:
    """Return the numbers in a vector, which is the sum of so many hospitals' or fewer.

    Raises:
        DataError: naming the first block with what is no sum of whole numbers of that many hospitals.
    """
    if vector.shape != (length_of(blocks),):
        raise DataError(
            f"{vector.size} numbers, expected {length_of(blocks)}: another study or version of medfed"
        )
    result: dict[str, list[int]] = {}
    for block, part in _parts(blocks, vector):
        if not np.isfinite(part).all():
            raise DataError(f"a number of '{block.name}' is not finite")
        whole = np.rint(part)
        # A secure sum's fixed point rounds far finer than this.
        if np.abs(part - whole).max(initial=0) > 1e-3:
            raise DataError(f"a number of '{block.name}' is not whole; it counts patients, cases or voxels")
        if np.abs(whole).max(initial=0) > sites * (BASE - 1.0):
            raise DataError(f"a number of '{block.name}' is too large")
        if block.of != "sums" and whole.min(initial=0) < 0:
            raise DataError(f"a number of '{block.name}' is negative, and a count never is")
        digits = whole.astype(np.int64).reshape(block.size, block.digits).tolist()
        result[block.name] = [sum(digit * BASE**place for place, digit in enumerate(one)) for one in digits]
    _check_counts(blocks, result, sites)
    return result


def _parts(
    blocks: Sequence[Block], vector: NDArray[np.floating[Any]]
) -> Iterator[tuple[Block, NDArray[np.floating[Any]]]]:
    start = 0
    for block in blocks:
        yield block, vector[start : start + block.length]
        start += block.length


def _check_counts(blocks: Sequence[Block], values: Values, sites: int) -> None:
    """Raise if more patients or cases are in a block's groups than there are."""
    most = {
        "flags": sites,
        "patients": sum(values.get("patients", (0,))),
        "cases": sum(values.get("cases", (0,))),
    }
    for block in blocks:
        numbers = values[block.name]
        if block.of == "flags" and max(numbers, default=0) > sites:
            raise DataError(f"'{block.name}' counts {max(numbers)} of {sites} hospitals")
        if block.of in ("patients", "cases") and (found := sum(numbers)) > most[block.of]:
            raise DataError(f"'{block.name}' counts {found} {block.of}, and there are {most[block.of]}")
