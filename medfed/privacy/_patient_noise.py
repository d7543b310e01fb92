"""Patient-level differential privacy of a hospital's counts, told once: Gaussian noise, added there.

The Gaussian mechanism (Dwork and Roth 2014, appendix A; its epsilon is that of `accounting/accountant.py`) on
a vector of counts that one patient moves by at most its L2 sensitivity. Neighbours differ by one training
patient added or removed; which patients train is taken as given, as in dp_sgd.

Each hospital adds the whole noise itself and not a share of it. Under a secure sum a share would suffice, but
only if no sum is opened a second time over other hospitals; here the promise rests on nobody else, whatever
the hub and the other hospitals do. Noise is rounded to whole numbers. As the counts are whole, that equals
rounding the noised ones, which is post-processing: the continuous mechanism's epsilon holds, and no low bit
of a floating-point number tells of the count (Mironov, CCS 2012).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated

import msgspec
from torch import Tensor

from medfed.errors import PrivacyError
from medfed.privacy._noise import gaussian
from medfed.privacy._privacy import Probability
from medfed.privacy.accounting.accountant import MechanismSteps, noise_for


class PatientNoise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Noise on each hospital's counts, so that they tell hardly anything of any single patient.

    epsilon, delta: what the counts spend of each training patient's privacy, once, on the hospital's ledger.
    """

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=50)]
    delta: Probability = 1e-5

    def cost(self) -> MechanismSteps:
        """Return what the counts cost each patient: one step of a Gaussian mechanism.

        Raises:
            PrivacyError: if no usable noise gives so small an epsilon.
        """
        try:
            return MechanismSteps(_multiplier(self.epsilon, self.delta))
        except PrivacyError as error:
            raise PrivacyError(
                f"describe.noise: epsilon {self.epsilon:g} at delta {self.delta:g} takes more noise than any "
                "hospital has patients; take a larger epsilon"
            ) from error

    def deviation(self, squared_sensitivity: int) -> float:
        """Return the standard deviation of the noise on each count.

        Raises:
            PrivacyError: as `cost`.
        """
        return self.cost().noise_multiplier * math.sqrt(squared_sensitivity)


@lru_cache(maxsize=64)
def _multiplier(epsilon: float, delta: float) -> float:
    return noise_for(epsilon, delta, MechanismSteps(0.0))


def with_noise(counts: Tensor, deviation: float) -> Tensor:
    """Return whole numbers plus whole Gaussian noise of this deviation, float64; new noise at each call."""
    return counts.double() + gaussian(counts.shape, deviation).round_()
