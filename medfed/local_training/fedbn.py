"""FedBN: every hospital keeps its own normalisation layers, because scanners differ in their intensities.

Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization, ICLR 2021, arXiv:2102.07623. Departure: instance, group and layer norms with learnt scale
and shift stay local, too.
"""

from __future__ import annotations

from medfed.local_training._local import LocalMethod


class FedBN(LocalMethod, tag="fedbn", frozen=True):
    """Keeps norm layers in the hospital: their scale, shift and running statistics are never sent."""

    is_data_free = True

    def keep_local(self) -> tuple[str, ...]:
        return ("norm",)
