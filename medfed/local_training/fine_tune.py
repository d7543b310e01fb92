"""Fine-tuning: after the federation each hospital continues to train the final model on its own cases.

Wang, Mathews, Kiddon, Eichner, Beaufays, Ramage: Federated Evaluation of On-device Personalization, 2019,
arXiv:1910.10252; for hospitals it is the baseline that a personalised method has to beat. The result stays in
the hospital. Departure: the number of epochs is fixed, and validation scores do not accept or reject a model.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.local_training._local import LocalMethod


class FineTune(LocalMethod, tag="fine_tune", frozen=True):
    """Trains the final model for `epochs` more at each hospital, which keeps it; the federation is unchanged.

    `rate` multiplies the study's learning rate, which is constant here; the optimiser
    starts with fresh moments.
    """

    epochs: Annotated[int, Meta(ge=1)] = 5
    rate: Annotated[float, Meta(gt=0)] = 0.1

    is_data_free = True
