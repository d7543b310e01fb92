"""What a run says about its privacy before it starts, and what each site has spent when it ends."""

from __future__ import annotations

import pytest
from torch import nn

from medfed.pipeline.privacy_facts import privacy_notes, with_spent_budget
from medfed.privacy.accounting.accountant import epsilon
from medfed.privacy.accounting.ledger import Ledger, MechanismSteps, data_set
from medfed.runs.facts import Mechanism, RunFacts
from medfed.study.canonical import study_digest
from medfed.study.reading import parse_study

STUDY = """\
name: heart
task: {kind: tabular, classes: [healthy, disease]}
network: {kind: fully_connected}
data: {kind: table, target: y, features: [a, b], standardise: none, missing: drop}
train: {rounds: 4}
sites: {south: south.csv, north: north.csv}
"""
STEPS = [MechanismSteps(2.0, 0.1, 7), MechanismSteps(2.0, 0.1, 5)]


def study(privacy):
    return parse_study(f"{STUDY}privacy: {privacy}\n", "heart.yaml")


def test_batch_norms_that_are_replaced_are_counted():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm3d(2), nn.GroupNorm(1, 2)))
    private = privacy_notes(study("{kind: dp_sgd}"), network)
    assert [note for note in private if note.startswith("2 batch norms of the network are group norms")]
    assert not [note for note in privacy_notes(study("{kind: none}"), network) if "batch norm" in note]


def test_own_models_without_privacy_are_said():
    private = study("{kind: dp_sgd}")
    assert any("trained without privacy" in note for note in privacy_notes(private, nn.Linear(2, 2)))
    assert not any(
        "trained without" in note for note in privacy_notes(study("{kind: none}"), nn.Linear(2, 2))
    )


def test_each_site_reports_what_its_last_run_of_this_study_spent(tmp_path):
    private = study("{kind: dp_sgd, delta: 1e-5}")
    patients = data_set(["anna"], b"x" * 32)
    for site, runs in (("north", 2), ("south", 1)):
        ledger = Ledger(tmp_path / site)
        for number in range(runs):
            account = ledger.reserve(study_digest(private), patients, STEPS[0])
            ledger.commit(account, STEPS[: 2 - number], 1)
            ledger.close(account)
    ledgers = {site: Ledger(tmp_path / site) for site in ("north", "south", "west")}
    privacy = with_spent_budget(RunFacts(), private, ledgers).privacy
    assert (privacy.delta, privacy.unit, privacy.accountant) == (1e-5, "patient", private.privacy.accountant)
    # West has no account of this study. North's second run spent the first steps alone.
    assert set(privacy.sites) == {"north", "south"}
    # Equal mechanisms are counted together: 7 steps, and 7 + 5.
    for site, steps in (("north", 7), ("south", 12)):
        spent = privacy.sites[site]
        expected = epsilon([MechanismSteps(2.0, 0.1, steps)], 1e-5, privacy.accountant)
        assert spent.epsilon == pytest.approx(expected, abs=1e-4)
        assert spent.mechanisms == [Mechanism(2.0, 0.1, steps)]


def test_a_study_without_an_epsilon_reports_nothing(tmp_path):
    facts = RunFacts(study="heart")
    assert with_spent_budget(facts, study("{kind: none}"), {"north": tmp_path}) is facts
