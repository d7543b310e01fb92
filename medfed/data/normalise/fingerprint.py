"""The federation's own foreground: clip to its 0.5 and 99.5 percentiles, then its mean 0 and
deviation 1 (nnU-Net's CT).

Isensee et al., nnU-Net, Nature Methods 2021, arXiv:1809.10486. The numbers come from all hospitals' merged
fingerprint (`medfed.data.fingerprint.proposal` writes this section) and stand in the study, so that a study
means the same at every hospital and in ten years.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.normalise._normalise import Normalise
from medfed.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FederatedFingerprint(Normalise, tag="fingerprint", frozen=True):
    """Clips to the federation's foreground percentiles, subtracts its mean and divides by
    its deviation; for CT.

    low, high: the 0.5 and 99.5 percentiles of the foreground over all hospitals.  mean, sd: of the
    foreground. There are no defaults: numbers of another study would be wrong without a word.
    """

    low: float
    high: float
    mean: float
    sd: Annotated[float, Meta(gt=0)]

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise DataError(
                f"normalise 'fingerprint': low is {self.low}, high is {self.high}; low must lie below high"
            )

    @classmethod
    def example(cls) -> FederatedFingerprint:
        """Return one for the folder's contract test, as the kind has no defaults."""
        return cls(low=-100.0, high=300.0, mean=100.0, sd=80.0)

    def channel(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        return ((voxels.clip(self.low, self.high) - self.mean) / self.sd).astype(np.float32)
