"""nnU-Net's CT normalisation with the statistics of all hospitals' foreground.

Isensee et al., nnU-Net, Nature Methods 2021, arXiv:1809.10486. The numbers come from all hospitals' merged
fingerprint (`medfed.data.proposal.propose_settings` writes this section) and stand in the study, so that a
study means the same at every hospital and in ten years.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.data.normalise._normalise import Normalise, Voxels, check_low_below_high


class FederatedFingerprint(Normalise, tag="fingerprint", frozen=True):
    """Clips to the federation's foreground percentiles and standardises by its mean and sd; for CT.

    low, high: the 0.5 and 99.5 percentiles of the foreground over all hospitals.  mean, sd: of the
    foreground. There are no defaults: another study's numbers would be wrong, and nothing would show it.
    """

    low: float
    high: float
    mean: float
    sd: Annotated[float, Meta(gt=0)]

    def __post_init__(self) -> None:
        check_low_below_high(self, self.low, self.high)

    @classmethod
    def example(cls) -> FederatedFingerprint:
        """Return an instance for the contract test, as the kind has no defaults."""
        return cls(low=-100.0, high=300.0, mean=100.0, sd=80.0)

    def channel(self, voxels: Voxels) -> Voxels:
        return ((voxels.clip(self.low, self.high) - self.mean) / self.sd).astype("float32")
