"""What can be told of a hospital's patients under noise: counts to which each patient adds at most one.

Differential privacy needs a bound on what one patient changes. In each block of `noised_blocks` a patient is
in one group or none, whatever the other patients are, so that adding or removing it changes one number of the
block by 1; over B blocks the vector moves by at most sqrt(B) (its L2 sensitivity). What has no such bound is
left out (`LEFT_OUT`): sums of ages and columns, intensities, and numbers of cases. Histograms have wider bins
than without noise, since each bin carries the noise once.

What is withheld for being small is decided on the noised numbers (`shown`), never before: whether a true
count is small would itself tell of a patient.
"""

from __future__ import annotations

from collections.abc import Sequence

from medfed.data.datamodule import SiteDataModule
from medfed.data.describe.blocks import Block, Values
from medfed.data.describe.gather import gather
from medfed.data.describe.scope import GEOMETRY, Scope, blocks_of
from medfed.data.describe.suppress import with_small_withheld

# The block that no patient changes: a hospital answered, and is in the sum.
HOSPITALS = "hospitals"

# How many bins of a histogram are one under noise, so that a decade of lengths or volumes has five.
LENGTH_STEP, VOLUME_STEP = 80, 4

# A bin below so many deviations of the noise may be empty; hundreds of such would be a crowd in a quantile.
EMPTY_DEVIATIONS = 3.0

# What Table 1 says is not in it.
LEFT_OUT = "cases, means and SDs, intensities: what one patient adds to them has no public bound"


def noised_blocks(scope: Scope) -> tuple[Block, ...]:
    """Return the blocks that leave under noise, in the order in which they are sent."""
    told = (one for one in blocks_of(scope) if _is_told(one))
    return (Block(HOSPITALS, 2, "flags"), *(Block(one.name, _sent_size(one), "sums") for one in told))


def squared_sensitivity(scope: Scope) -> int:
    """Return by how much one patient more or less moves the numbers at most: the square of the L2 norm."""
    return len(noised_blocks(scope)) - 1


def count_once(data: SiteDataModule, scope: Scope) -> dict[str, list[int]]:
    """Return the true counts for `noised_blocks(scope)`, each patient once, before the noise.

    Raises:
        ImageError, LabelError: for a case that is refused, by its token.
    """
    exact = gather(data, scope, 1, each_once=True)
    values = {HOSPITALS: [1, 1]}
    for block in blocks_of(scope):
        if _is_told(block):
            values[block.name] = _coarse(exact.get(block.name) or [0] * block.size, block)
    return values


def shown(scope: Scope, values: Values, least: int, deviation: float) -> dict[str, list[int]]:
    """Return noised counts as Table 1 shows them, for `blocks_of(scope)`.

    Negative ones are 0, groups of fewer than `least` are withheld, and so are bins of a histogram that the
    noise of this `deviation` alone could fill. What is left out is 0.
    """
    result: dict[str, list[int]] = {}
    for block in blocks_of(scope):
        counts = [max(count, 0) for count in values.get(block.name, ())]
        if not counts:
            result[block.name] = [0] * block.size
        elif block.name == HOSPITALS:
            result[block.name] = counts
        elif _step(block) or block.name == "patients":
            smallest = max(least, EMPTY_DEVIATIONS * deviation) if _step(block) else least
            result[block.name] = _widened([count if count >= smallest else 0 for count in counts], block)
        else:
            result[block.name] = with_small_withheld(counts, least)
    return result


def _is_told(block: Block) -> bool:
    """Whether what one patient adds to a block is bounded; `age.counted` follows from `age.known`."""
    geometry = block.name.partition(".")[0] in GEOMETRY
    return block.name == "patients" or geometry or (block.of == "patients" and block.name != "age.counted")


def _step(block: Block) -> int:
    """Return how many bins of a histogram are one under noise; 0 for groups."""
    kind = block.name.partition(".")[0]
    if kind in GEOMETRY:
        return LENGTH_STEP
    return {"volume": VOLUME_STEP, "age": 1}.get(kind, 0) if block.name != "age.known" else 0


def _sent_size(block: Block) -> int:
    """Return how many numbers of a block leave: no group of what is withheld, which is decided later."""
    if step := _step(block):
        return -(-block.size // step)
    return block.size if block.name == "patients" else block.size - 1


def _coarse(counts: Sequence[int], block: Block) -> list[int]:
    if step := _step(block):
        return [sum(counts[start : start + step]) for start in range(0, block.size, step)]
    return list(counts[: _sent_size(block)])


def _widened(counts: Sequence[int], block: Block) -> list[int]:
    """Return all bins of a histogram, each wide bin's count in its middle one."""
    step = _step(block) or 1
    result = [0] * block.size
    for number, count in enumerate(counts):
        result[min(number * step + step // 2, block.size - 1)] += count
    return result
