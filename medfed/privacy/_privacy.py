"""What every privacy mechanism is: both of its sides in one record, so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from medfed.kinds import Kind
from medfed.update import Update
from medfed.weights import Weights


class Privacy(Kind, frozen=True):
    """What happens to an update before it leaves."""

    folder: ClassVar[str] = "privacy"

    # Whether the hub, after `reveal`, still sees each site's own update. Rules that need it are refused where not.
    reveals_each_update: ClassVar[bool] = True

    # The groups of tensors that `protect` adds in place of the readable ones, and the numbers it adds to the report.
    sends: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ()

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital in place of this update; called there, after `check`."""
        raise NotImplementedError

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return what the hub merges, from what arrived; called at the hub."""
        return updates
