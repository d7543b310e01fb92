"""What hospitals send of removed components adds up by patients, and the largest pooled gain decides."""

from __future__ import annotations

import pytest
import torch

from medfed.errors import WireError
from medfed.federation.postprocessing import (
    CANDIDATES,
    CHOICE,
    COMPONENTS,
    PATIENTS,
    choice_group,
    choose_rules,
    name_of,
    names_of,
    pooled_gains,
    rules_in,
    scalars_of,
    sentence_of,
)
from medfed.wire.update import GlobalModel

LARGEST = CANDIDATES.index("largest")


def sent(patients: int, **gains: dict) -> dict[str, float]:
    """Return what a hospital sends: of each structure the given candidates' gains, 0 of the others."""
    return scalars_of(
        patients, {name: [of.get(one, 0.0) for one in CANDIDATES] for name, of in gains.items()}
    )


def test_gains_are_weighted_by_patients_over_hospitals():
    both = {
        "north": sent(10, liver={"largest": 0.02, 0.1: 0.01}),
        "south": sent(30, liver={"largest": -0.01}),
    }
    # By hand: (10 * 0.02 - 30 * 0.01) / 40 = -0.0025, and 10 * 0.01 / 40 = 0.0025.
    assert pooled_gains(both, "liver")[LARGEST] == pytest.approx(-0.0025)
    assert pooled_gains(both, "liver")[CANDIDATES.index(0.1)] == pytest.approx(0.0025)
    # North alone would keep only the largest; over both hospitals the volume wins.
    assert choose_rules({"north": both["north"]}, ["liver"])[0] == {"liver": "largest"}
    assert choose_rules(both, ["liver"]) == ({"liver": 0.1}, {"liver": pytest.approx(0.0025)})


def test_each_structure_has_its_own_rule_and_none_without_a_gain():
    site = sent(8, liver={"largest": 0.05}, lesion={0.3: 0.004, 1.0: 0.004}, cyst={0.3: 0.0004, 1.0: -0.2})
    rules, gains = choose_rules({"north": site}, ["liver", "lesion", "cyst"])
    # Of two equal gains the milder removal is taken; 0.0004 rounds to nothing.
    assert rules == {"liver": "largest", "lesion": 0.3}
    assert gains == {"liver": pytest.approx(0.05), "lesion": pytest.approx(0.004)}


def test_means_leave_in_thousandths():
    # One of 5 patients gains 0.0123: the mean is 0.00246, of which only 0.002 leaves.
    values = sent(5, liver={"largest": 0.0123 / 5})
    assert values[name_of("largest", "liver")] == pytest.approx(0.002)
    assert {*values} == {*names_of(["liver"])}
    assert all(name.startswith(COMPONENTS) for name in values)
    assert scalars_of(0, {}) == {}


def test_a_hospital_that_labels_only_some_structures_counts_for_those():
    sites = {"north": sent(10, liver={"largest": 0.01}), "south": sent(10, lesion={0.1: 0.01})}
    assert choose_rules(sites, ["liver", "lesion"])[0] == {"liver": "largest", "lesion": 0.1}


@pytest.mark.parametrize("lie", [float("nan"), float("inf"), 2.0, -1.5])
def test_impossible_gains_are_left_out_with_their_hospital(lie):
    honest, liar = sent(10, liver={0.1: 0.01}), {**sent(10, liver={}), name_of("largest", "liver"): lie}
    assert choose_rules({"north": honest, "south": liar}, ["liver"])[0] == {"liver": 0.1}


def test_a_hospital_that_states_a_million_patients_counts_as_a_thousand():
    honest = sent(500, liver={"largest": -0.04})
    liar = {**sent(1, liver={"largest": 0.02}), PATIENTS: 1e6}
    # (-500 * 0.04 + 1000 * 0.02) / 1500 = 0; with a million it would be nearly 0.02.
    assert pooled_gains({"north": honest, "south": liar}, "liver")[LARGEST] == pytest.approx(0.0)
    assert choose_rules({"north": honest, "south": liar}, ["liver"]) == ({}, {})


def test_without_any_hospital_nothing_is_removed():
    assert choose_rules({"north": {}}, ["liver"]) == ({}, {})
    assert "No connected components are removed" in sentence_of({}, {})


@pytest.mark.parametrize("rules", [{}, {"liver": "largest"}, {"lesion": 0.1, "liver": 3.0}])
def test_the_choice_travels_with_the_final_model(rules):
    structures = ["liver", "lesion"]
    model = GlobalModel(3, {}, final=True, groups={CHOICE: choice_group(rules, structures)})
    assert rules_in(model, structures) == rules


@pytest.mark.parametrize(
    "numbers", [None, [0.0], [0.0, 7.0], [0.5, 0.0], [float("nan"), 0.0], [-2.0, 0.0]], ids=str
)
def test_another_choice_than_one_of_the_candidates_is_refused(numbers):
    groups = {} if numbers is None else {CHOICE: {"candidates": torch.tensor(numbers)}}
    with pytest.raises(WireError, match="choices of which components to remove"):
        rules_in(GlobalModel(3, {}, final=True, groups=groups), ["liver", "lesion"])
