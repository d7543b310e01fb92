"""A simulated federation for tests, with the hub's settings as keywords."""

from __future__ import annotations

from medfed.federation.config import HubConfig
from medfed.federation.simulation import simulate

RUN = ("folder", "on_round", "on_model", "audit", "on_bytes")


def simulated(sites, weights, **settings):
    """Run the federation and return the final model; settings are those of `simulate` and HubConfig."""
    run = {key: settings.pop(key) for key in RUN if key in settings}
    settings["privacy"] = (
        settings.get("privacy") or HubConfig.__dataclass_fields__["privacy"].default_factory()
    )
    return simulate(sites, weights, HubConfig(sites=tuple(sorted(sites)), **settings), **run)
