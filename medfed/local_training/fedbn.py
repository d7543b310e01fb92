"""FedBN: every hospital keeps its own normalisation layers, for scanners differ in what
they make of intensities.

Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch Normalization,
ICLR 2021, arXiv:2102.07623. Departure: instance, group and layer norms with learnt scale and shift are
kept like batch norms.
"""

from __future__ import annotations

from medfed.local_training._local import Local


class FedBN(Local, tag="fedbn", frozen=True):
    """Keeps norm layers in the hospital: their scale, shift and running statistics are never sent."""

    @property
    def needs_no_cases(self) -> bool:
        return True

    def kept(self) -> tuple[str, ...]:
        return ("norm",)
