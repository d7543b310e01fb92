"""A hospital's policy."""

from __future__ import annotations

import msgspec
import pytest

from medfed.deployment.policy import Policy, refusals
from medfed.errors import StudyError
from medfed.privacy.accounting.accountant import MechanismSteps, epsilon
from medfed.study.reading import read_study


@pytest.fixture
def study(tiny):
    return read_study(tiny / "tiny.yaml")


@pytest.fixture
def noised(tiny):
    return read_study(tiny / "tiny.yaml", ["privacy={kind: client_dp, where: site, noise_multiplier: 2.0}"])


def test_a_policy_that_says_nothing_refuses_nothing(study):
    assert refusals(Policy(), study, 1) == []


REFUSED = {
    "task": (
        Policy(tasks=("classify", "tabular")),
        "the study's task is 'segment', this hospital accepts 'classify' or 'tabular' (policy.tasks)",
    ),
    "network": (
        Policy(networks=("resnet",)),
        "the study's network is 'unet', this hospital accepts 'resnet' (policy.networks)",
    ),
    "privacy": (
        Policy(privacy=("dp_sgd",)),
        "the study's privacy is 'none', this hospital requires 'dp_sgd' (policy.privacy)",
    ),
    "ceiling": (
        Policy(epsilon_ceiling=3),
        "the study's privacy 'none' states no epsilon, this hospital allows at most 3 "
        "(policy.epsilon_ceiling)",
    ),
    "rounds": (
        Policy(max_rounds=2),
        "the study trains 3 rounds, this hospital allows 2 (policy.max_rounds)",
    ),
    "cases": (
        Policy(minimum_cases=5),
        "this hospital has 4 training cases for the study and takes part only with 5 or more "
        "(policy.minimum_cases)",
    ),
}


@pytest.mark.parametrize("policy, said", REFUSED.values(), ids=REFUSED.keys())
def test_each_key_refuses_by_itself_and_says_so(study, policy, said):
    assert refusals(policy, study, 4) == [said]


def test_epochs_and_all_reasons_at_once(tiny):
    study = read_study(tiny / "tiny.yaml", ["train.epochs=4"])
    policy = Policy(max_local_epochs=3, max_rounds=1, minimum_cases=9)
    assert [reason.rpartition("(")[2] for reason in refusals(policy, study, 4)] == [
        "policy.max_rounds)",
        "policy.max_local_epochs)",
        "policy.minimum_cases)",
    ]


def test_a_studys_epsilon_may_not_exceed_the_ceiling(tiny):
    study = read_study(
        tiny / "tiny.yaml", ["privacy={kind: client_dp, where: site, epsilon: 8, delta: 0.001}"]
    )
    assert refusals(Policy(epsilon_ceiling=8, delta=0.001), study, 4) == []
    said = refusals(Policy(epsilon_ceiling=7.5), study, 4)
    assert said[0] == "the study's epsilon is 8, this hospital allows at most 7.5 (policy.epsilon_ceiling)"
    assert (
        "states its epsilon at a delta of 0.001, this hospital allows at most 1e-05 (policy.delta)" in said[1]
    )


def test_noise_without_an_epsilon_is_counted(noised):
    spent = epsilon([MechanismSteps(2.0, 1.0, 3)], 1e-5, "prv")
    assert refusals(Policy(epsilon_ceiling=spent + 0.01), noised, 4) == []
    assert f"the study's epsilon is {spent:g}" in refusals(Policy(epsilon_ceiling=spent - 0.01), noised, 4)[0]


def test_a_misspelt_kind_is_an_error_and_not_a_hole():
    with pytest.raises(
        StudyError, match=r"policy\.privacy: there is no 'dp_sdg'; did you mean 'dp_sgd'\?; choose from"
    ):
        Policy(privacy=("dp_sdg",))
    with pytest.raises(msgspec.ValidationError, match="unknown field `privcy`"):
        msgspec.convert({"privcy": ["dp_sgd"]}, Policy)


def test_statistics_before_training_need_a_policy_that_lets_them_leave(tiny):
    plain = read_study(tiny / "tiny.yaml")
    study = read_study(tiny / "tiny.yaml", ["data.plan={min_patients: 2}"])
    asks = "the study asks for statistics of the training data (data.plan, describe)"
    assert refusals(Policy(), study, 4) == []
    kept = Policy(statistics=False)
    assert refusals(kept, plain, 4) == []
    assert refusals(kept, study, 4) == [f"{asks}, this hospital sends none (policy.statistics)"]
    summed = read_study(
        tiny / "tiny.yaml",
        ["describe={privacy: {kind: secure_sum, min_sites: 2, colluding: 0}}"],
    )
    assert refusals(Policy(privacy=("secure_sum", "none")), summed, 4) == []
    assert refusals(Policy(privacy=("none",)), summed, 4) == [
        f"{asks} under 'secure_sum' (describe.privacy), this hospital requires 'none' (policy.privacy)"
    ]
    assert refusals(Policy(epsilon_ceiling=3), study, 4)[1:] == [
        f"{asks} without an epsilon, this hospital allows at most 3 (policy.epsilon_ceiling)"
    ]
