"""Noise that is given or follows from a target epsilon, and settings that are refused."""

from __future__ import annotations

import pytest

from medfed.errors import PrivacyError
from medfed.privacy.accounting.accountant import MechanismSteps, epsilon
from medfed.privacy.client_dp import Adaptive, ClientDP


def test_the_target_epsilon_of_a_study_is_met_over_its_rounds():
    kind = ClientDP(epsilon=4.0, accountant="rdp")
    with pytest.raises(PrivacyError, match=r"use planned\(rounds\)"):
        kind.round_cost()
    planned = kind.planned(10)
    assert planned.noise_multiplier is not None
    assert 3.98 < epsilon([MechanismSteps(planned.noise_multiplier, 1.0, 10)], 1e-5, "rdp") <= 4
    assert planned.round_cost() == MechanismSteps(planned.noise_multiplier)
    given = ClientDP(noise_multiplier=1.5)
    assert given.planned(10) is given


def test_no_amplification_is_counted_for_sites_drawn_from_a_seed_that_everyone_knows():
    assert ClientDP(noise_multiplier=1.5).round_cost().sample_rate == 1.0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "give noise_multiplier, or epsilon and delta"),
        ({"where": "site", "noise_multiplier": 1.0, "adaptive": Adaptive()}, "adaptive needs where: hub"),
    ],
)
def test_contradictory_settings_are_refused(settings, words):
    with pytest.raises(PrivacyError, match=words):
        ClientDP(**settings)
