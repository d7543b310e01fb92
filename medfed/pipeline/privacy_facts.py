"""What a run says about its privacy: before it starts, and what each hospital has spent when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfed.privacy.accounting.accountant import epsilon
from medfed.privacy.accounting.ledger import Ledger

if TYPE_CHECKING:
    from torch import nn

    from medfed.study.study import Study


def notes(study: Study, network: nn.Module) -> list[str]:
    """Return what a person should know of a study's privacy, a sentence each; `network` is as
    the file describes it.
    """
    found = list(study.privacy.notes())
    replaced = _batch_norms(network) if study.privacy.replaces_batch_norm else 0
    if replaced:
        found.append(
            f"{replaced} batch norms of the network are group norms in this study, at every site and at the hub: batch "
            f"norm mixes patients and keeps statistics of them"
        )
    if study.privacy.trains_privately and study.evaluation.local_models and len(study.sites) > 1:
        found.append(
            "the hospitals' own models, for comparison, are trained without privacy and stay where they are"
        )
    return found


def spent(study: Study, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return for run.json what this study's last run at each site has spent, by the ledgers in these folders."""
    delta = getattr(study.privacy, "delta", None)
    if delta is None:
        return {}
    from medfed.study.canonical import study_digest

    sites = {}
    for site, folder in folders.items():
        accounts = Ledger(folder).accounts(study_digest(study))
        if not accounts:
            continue
        charges = accounts[-1].spent
        sites[site] = {
            "epsilon": round(epsilon(charges, delta, study.privacy.accountant), 4),  # type: ignore[attr-defined]
            "mechanisms": [
                {"noise_multiplier": c.noise_multiplier, "sample_rate": c.sample_rate, "steps": c.steps}
                for c in charges
            ],
        }
    unit = "patient" if study.privacy.trains_privately else "site"
    return {"delta": delta, "unit": unit, "accountant": study.privacy.accountant, "sites": sites}  # type: ignore[attr-defined]


def _batch_norms(network: nn.Module) -> int:
    from torch import nn as layers

    return sum(isinstance(m, layers.modules.batchnorm._BatchNorm) for m in network.modules())
