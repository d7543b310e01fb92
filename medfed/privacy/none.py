"""No mechanism: the hub sees every site's weights. Images and rows stay in the hospital all the same."""

from __future__ import annotations

from medfed.privacy._privacy import Privacy
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class NoPrivacy(Privacy, tag="none", frozen=True):
    """Nothing is changed: the hub sees each site's weights, from which a determined one can
    learn about its cases.
    """

    def protect(self, update: Update, weights: Weights) -> Update:
        return update
