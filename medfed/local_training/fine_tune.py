"""Fine-tuning: after the federation each hospital trains the final model on, on its own cases,
and keeps the result.

Wang, Mathews, Kiddon, Eichner, Beaufays, Ramage: Federated Evaluation of On-device Personalization,
2019, arXiv:1910.10252; for hospitals it is the baseline that a personalised method has to beat. Nothing
of it is sent.
Departure: epochs are fixed beforehand, and a model is not accepted or refused by its validation score.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.local_training._local import Local


class FineTune(Local, tag="fine_tune", frozen=True):
    """Trains the final model on for `epochs` at each hospital, which keeps it; the
    federation itself is plain.

    `rate` multiplies the study's learning rate, which is constant then and starts with fresh moments.
    """

    epochs: Annotated[int, Meta(ge=1)] = 5
    rate: Annotated[float, Meta(gt=0)] = 0.1

    @property
    def needs_no_cases(self) -> bool:
        return True
