"""Sites that hold a later model of this study than the hub knows: its run folder is a back-up.

Such a site refuses what the hub publishes, and its heartbeats say so. The hub says at once what to do, and
after a while counts the site as one that cannot answer: so a round with too few sites ends with the reason
instead of waiting for ever. A site that says so falsely leaves out itself, and nobody else.
"""

from __future__ import annotations

import time

from medfed.errors import UpdateError
from medfed.exchange._exchange import ReceivedUpdate
from medfed.exchange._protocol import WarnOnce
from medfed.exchange._site_heartbeats import SiteHeartbeats
from medfed.wire.untrusted_text import for_log

# For how long a site must say so before it is no longer waited for; whoever restarts it with a new folder,
# or the hub with its newest one, has so long without losing a round.
REFUSED_AFTER_S = 30.0


class LaterModels:
    """What the sites' heartbeats say of models that the hub of this run does not know."""

    def __init__(self, heartbeats: SiteHeartbeats, run: str, warn: WarnOnce) -> None:
        self._heartbeats, self._run, self._warn = heartbeats, run, warn

    def refusal(self, round: int, site: str) -> ReceivedUpdate | None:
        """Log at once what a site holds; return that it cannot answer once it has said so for long enough."""
        held = self._heartbeats.held(site)
        if held is None:
            return None
        run, number, since = held
        if run == self._run and number < round:
            return None  # it has not seen yet what was published since
        why = _why(run, number, self._run, round - 1)
        self._warn(f"site '{site}' {why}")
        if time.monotonic() - since < REFUSED_AFTER_S:
            return None
        return ReceivedUpdate(site, None, UpdateError(f"site '{site}', round {round}: it {why}"))


def _why(run: str, number: int, own: str, published: int) -> str:
    if run == own:
        return (
            f"holds the model of round {number}, and this hub has just published that of round {published}: "
            "the hub's run folder is a back-up, and what it published since is lost. Stop the hub, restore "
            "the newest copy of its run folder and start it with --resume; without one, start a new run "
            "(--out) and move the sites' run folders of this study away"
        )
    return (
        f"takes part in another run of this study ({for_log(run, 40)[:8]}, not {own[:8]}; its newest model "
        f"is of round {number}) and accepts no model of this one. Either the hub's run folder is a back-up "
        "of before that run: then stop the hub, restore the newest copy of its run folder and start it with "
        "--resume. Or the study is meant to start again: then move the site's run folder of this study away"
    )
