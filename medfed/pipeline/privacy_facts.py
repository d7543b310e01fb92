"""What a run reports about its privacy: notes before it starts, and what each site has spent when it ends."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from torch import nn

from medfed.privacy.accounting.accountant import epsilon
from medfed.privacy.accounting.ledger import Ledger
from medfed.runs.facts import Mechanism, RunFacts, SitePrivacy
from medfed.study.canonical import study_digest
from medfed.study.study import Study


def privacy_notes(study: Study, network: nn.Module) -> list[str]:
    """Return what a person should know about a study's privacy, one sentence per note.

    `network` is the network as the study file describes it.
    """
    notes = list(study.privacy.notes())
    replaced = _batch_norms(network) if study.privacy.replaces_batch_norm else 0
    if replaced:
        notes.append(
            f"{replaced} batch norms of the network are group norms in this study, at every site and at the "
            "hub: batch norm mixes patients and keeps statistics of them"
        )
    if study.privacy.trains_privately and study.evaluation.local_models and len(study.sites) > 1:
        notes.append(
            "the hospitals' own models, for comparison, are trained without privacy and stay where they are"
        )
    return notes


def with_spent_budget(facts: RunFacts, study: Study, ledgers: Mapping[str, Ledger]) -> RunFacts:
    """Return the facts with what each site spent in this study's last run, by the ledgers."""
    delta = getattr(study.privacy, "delta", None)
    if delta is None:
        return facts
    accountant = getattr(study.privacy, "accountant")  # noqa: B009 - a mechanism with a delta has one
    sites = {}
    for site, ledger in ledgers.items():
        accounts = ledger.accounts(study_digest(study))
        if not accounts:
            continue
        charges = accounts[-1].spent
        mechanisms = [Mechanism(c.noise_multiplier, c.sample_rate, c.steps) for c in charges]
        sites[site] = SitePrivacy(round(epsilon(charges, delta, accountant), 4), mechanisms)
    unit = "patient" if study.privacy.trains_privately else "site"
    privacy = msgspec.structs.replace(
        facts.privacy, delta=delta, unit=unit, accountant=accountant, sites=sites
    )
    return msgspec.structs.replace(facts, privacy=privacy)


def _batch_norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
