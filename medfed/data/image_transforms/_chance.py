"""What random transforms share: whether an image is changed, and limits in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.image_transforms._transform import Transform
from medfed.errors import DataError
from medfed.registry import kind_of

if TYPE_CHECKING:
    import numpy as np

Probability = Annotated[float, Meta(ge=0, le=1)]


class Ranged(Transform, frozen=True):
    """A random change of a strength between `low` and `high`, of a share of the training images.

    Raises:
        DataError: if `low` is above `high`.
    """

    probability: Probability = 0.15
    low: Annotated[float, Meta(gt=0)] = 0.75
    high: Annotated[float, Meta(gt=0)] = 1.25

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise DataError(
                f"data.transforms: {kind_of(self)}: low is {self.low}, high is {self.high}; low is at most "
                "high"
            )

    def draw(self, random: np.random.Generator) -> float | None:
        """Return a strength, or None if the image stays; two numbers are drawn either way."""
        chance, strength = random.random(), random.uniform(self.low, self.high)
        return float(strength) if chance < self.probability else None
