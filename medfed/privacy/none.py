"""No mechanism: the hub sees every site's weights. Images and rows stay in the hospital."""

from __future__ import annotations

from typing import ClassVar

from medfed.privacy._privacy import Privacy
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class NoPrivacy(Privacy, tag="none", frozen=True):
    """No protection: the hub sees each site's weights and could infer something about its cases."""

    site_only: ClassVar[bool] = True

    def protect(self, update: Update, weights: Weights) -> Update:
        return update
