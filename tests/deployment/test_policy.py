"""A hospital's policy, and a study in words."""

from __future__ import annotations

import msgspec
import pytest

from medfed.data.reading import Reading
from medfed.deployment.policy import Policy, describe, egress_size, refusals
from medfed.errors import StudyError
from medfed.pipeline.factory import module_of
from medfed.privacy.accounting.accountant import MechanismSteps, epsilon
from medfed.registry import kinds
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


def test_the_words_name_what_a_privacy_officer_asks(study, noised):
    words = describe(study, "d" * 64)
    tensors, numbers, size = egress_size(study)
    for said in ("segment (background, lesion)", "3 rounds", f"{numbers:,} numbers in {tensors} tensors",
                 "north, south", "Protection         none", "d" * 64):  # fmt: skip
        assert said in words
    assert size > 4 * numbers
    assert "noise_multiplier: 2.0" in describe(noised, "d")
    assert all(len(line) < 200 for line in words.splitlines())
    assert "SUV" not in words
    suv = msgspec.structs.replace(study.data, read=Reading(pet="suv"))
    assert "PET as SUV by body weight" in describe(msgspec.structs.replace(study, data=suv), "d")


def test_the_words_count_what_is_sent(study, tmp_path):
    from medfed.wire import encoding as wire
    from medfed.wire.update import Update
    from medfed.wire.weights import Difference, weights_of

    weights = weights_of(module_of(study))
    sent = wire.encode_update(Update("north", 1, Difference(weights, weights), 4, {"val/dice": 0.5}), "s")
    tensors, numbers, size = egress_size(study)
    assert (tensors, numbers) == (len(weights), sum(t.numel() for t in weights.values()))
    assert size == pytest.approx(len(sent), rel=0.1)


def test_a_huge_network_is_counted_and_not_allocated(tiny):
    study = read_study(tiny / "tiny.yaml", ["network.channels=[200000, 200000]"])
    tensors, numbers, size = egress_size(study)
    assert tensors == egress_size(read_study(tiny / "tiny.yaml"))[0]
    # The 3 x 3 x 3 kernels between so many channels alone: 4 TB.
    assert numbers > 27 * 200_000**2
    assert size > 4 * numbers


# What the page says of the examples, and whether scores, reasons of cases left out, and results leave.
PAGES = {
    "none": ("the number of training cases behind them", True, True, True),
    "secure_sum": ("only all hospitals' sum can be read", True, False, False),
    "distributed_dp": ("every hospital counts the same", False, False, False),
    "client_dp": ("every hospital counts the same", False, False, False),
    "ckks": ("the number of training cases behind them", True, True, True),
}


@pytest.mark.parametrize("kind", PAGES)
def test_the_words_say_what_leaves_beside_the_weights_under_each_mechanism(study, kind):
    examples, scores, left_out, results = PAGES[kind]
    record = kinds("privacy")[kind]
    sites = dict.fromkeys(("a", "b", "c", "d", "e", "f"), "")
    settings = {"kind": kind, **record.example, **({"min_sites": 4} if kind == "distributed_dp" else {})}
    words = describe(
        msgspec.structs.replace(study, privacy=msgspec.convert(settings, record), sites=sites), "d" * 64
    )
    assert examples in words
    assert ("scores over all of its validation cases" in words) == scores
    assert ("no scores: they stay here" in words) == (not scores)
    # The format of its files leaves under each: without it nobody sees that labels differ in meaning.
    assert "whether its labels name their structures, and whether its images have a size in mm" in words
    assert ("how many cases it left out" in words) == left_out
    assert ("results over groups of at least" in words) == results
    assert ("no results; under this protection they stay here" in words) == (not results)
    # Bonawitz et al.: of 6, one colluding, floor((6 + 1) / 2) + 1 = 4; the share of 0.67 asks for 5.
    bound = "with this study's 6 hospitals per round, at least 5 must stay to its end; at most 1 of the 6 may"
    assert (bound in words) == (kind in ("secure_sum", "distributed_dp"))
