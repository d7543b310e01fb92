"""A simulated federation whose hub settings are given as keywords, for tests."""

from __future__ import annotations

from medfed.federation.config import HubConfig
from medfed.federation.simulation import simulate

RUN = ("folder", "on_round", "on_model", "audit", "on_bytes")


def simulated(sites, weights, **settings):
    """Return the final model; the settings are those of `simulate` and of HubConfig."""
    run = {key: settings.pop(key) for key in RUN if key in settings}
    settings["privacy"] = (
        settings.get("privacy") or HubConfig.__dataclass_fields__["privacy"].default_factory()
    )
    return simulate(sites, weights, HubConfig(sites=tuple(sorted(sites)), **settings), **run)
