"""FedAvgM, FedAdagrad, FedAdam and FedYogi against loops over scalars, and on a quadratic by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.aggregation import Rule
from medfed.aggregation.fedadagrad import FedAdagrad
from medfed.aggregation.fedadam import FedAdam
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedavgm import FedAvgM
from medfed.aggregation.fedyogi import FedYogi
from medfed.errors import RuleError
from medfed.wire.update import Update

torch.set_num_threads(1)

ADAPTIVE = [FedAdagrad(beta1=0.5), FedAdam(), FedYogi()]


def rounds(rule: Rule, deltas: list[float], start: float = 1.0) -> list[float]:
    """Return the weight after each round in which one site sends that delta."""
    weights = {"w": torch.tensor([start], dtype=torch.float64)}
    state = rule.init(weights)
    results = []
    for number, delta in enumerate(deltas):
        update = Update("a", number, {"w": torch.tensor([delta], dtype=torch.float64)}, 4)
        weights, state = rule.merge([update], state, weights)
        results.append(float(weights["w"]))
    return results


def independent(rule: Rule, deltas: list[float], w: float = 1.0) -> list[float]:
    """Compute algorithm 2 of arXiv:2003.00295 on scalars, with v itself and not its root."""
    m, v = 0.0, rule.tau**2 if rule.start is None else rule.start
    results = []
    for delta in deltas:
        m = rule.beta1 * m + (1 - rule.beta1) * delta
        if isinstance(rule, FedAdagrad):
            v = v + delta**2
        elif isinstance(rule, FedAdam):
            v = rule.beta2 * v + (1 - rule.beta2) * delta**2
        else:
            v = v - (1 - rule.beta2) * delta**2 * ((v > delta**2) - (v < delta**2))
        w = w + rule.learning_rate * m / (math.sqrt(v) + rule.tau)
        results.append(w)
    return results


@pytest.mark.parametrize("rule", [*ADAPTIVE, FedAdam(start=0.0, beta2=0.999)], ids=lambda r: type(r).__name__)
@settings(max_examples=40, deadline=None)
@given(deltas=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=8))
def test_adaptive_steps_equal_the_papers_algorithm(rule: Rule, deltas: list[float]) -> None:
    assert rounds(rule, deltas) == pytest.approx(independent(rule, deltas), rel=1e-9, abs=1e-12)


def test_fedavgm_by_hand() -> None:
    # v: 2, 0.5*2+2 = 3, 0.5*3+2 = 3.5; w: 1+2 = 3, 6, 9.5.
    assert rounds(FedAvgM(momentum=0.5), [2, 2, 2]) == [3.0, 6.0, 9.5]


def test_first_adam_step_by_hand() -> None:
    # m = 0.1*3 = 0.3; v = 0.99*0 + 0.01*9 = 0.09, its root 0.3; step 0.5 * 0.3 / (0.3 + 0.2) = 0.3.
    assert rounds(FedAdam(learning_rate=0.5, tau=0.2, start=0.0), [3.0]) == pytest.approx([1.3], rel=1e-7)


def test_yogi_shrinks_slowly_by_hand() -> None:
    # v starts at 4. Delta 1: v > 1, so v = 4 - 0.5*1 = 3.5. Delta 3: v < 9, so v = 3.5 + 0.5*9 = 8.
    rule = FedYogi(beta2=0.5, start=4.0)
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    state = rule.init(weights)
    for delta, moment in ((1.0, 3.5), (3.0, 8.0)):
        _, state = rule.merge([Update("a", 1, {"w": torch.tensor([delta])}, 1)], state, weights)
        assert float(state["root_second_moment"]["w"]) == pytest.approx(math.sqrt(moment), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    deltas=st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=3, max_size=3
    ),
    n=st.integers(1, 9),
)
def test_without_momentum_fedavgm_is_fedavg(deltas: list[float], n: int) -> None:
    weights = {"w": torch.tensor([0.5])}
    updates = [Update(f"s{i}", 1, {"w": torch.tensor([d])}, n + i) for i, d in enumerate(deltas)]
    rule = FedAvgM(momentum=0.0)
    results = rule.merge(updates, rule.init(weights), weights)[0]["w"]
    assert torch.equal(results, FedAvg().merge(updates, {}, weights)[0]["w"])


@pytest.mark.parametrize("rule", ADAPTIVE, ids=lambda r: type(r).__name__)
@settings(max_examples=20, deadline=None)
@given(deltas=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), by=st.sampled_from([2.0**-10, 2.0**10]))
def test_scaling_deltas_and_tau_leaves_the_steps(rule: Rule, deltas: list[float], by: float) -> None:
    # m, the root of v, and tau all have the deltas' unit, so eta m / (root + tau) is dimensionless.
    scaled = type(rule)(beta1=rule.beta1, tau=rule.tau * by)
    assert rounds(scaled, [d * by for d in deltas]) == pytest.approx(rounds(rule, deltas), rel=1e-9)


@pytest.mark.parametrize(
    "rule",
    [
        FedAvgM(momentum=0.5),
        FedAdagrad(learning_rate=0.3),
        FedAdam(learning_rate=0.05),
        FedYogi(learning_rate=0.05),
    ],
    ids=lambda r: type(r).__name__,
)
def test_it_finds_the_minimum_of_the_sites_quadratics(rule: Rule) -> None:
    # Site k has loss (w - c_k)^2 / 2 and takes one step of 0.5: delta = 0.5 (c_k - w). With examples 1 and 3
    # and centres -2 and 2 the mean loss is least at (1 * -2 + 3 * 2) / 4 = 1.
    weights = {"w": torch.tensor([5.0])}
    state = rule.init(weights)
    for number in range(400):
        updates = [
            Update(site, number, {"w": 0.5 * (centre - weights["w"])}, n)
            for site, centre, n in (("a", -2.0, 1), ("b", 2.0, 3))
        ]
        weights, state = rule.merge(updates, state, weights)
    assert float(weights["w"]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rule", [FedAvgM(), *ADAPTIVE], ids=lambda r: type(r).__name__)
def test_running_statistics_are_averaged_and_never_stepped(rule: Rule) -> None:
    # Variances fall by 0.5 each round; momentum would soon make them negative.
    weights = {"norm.running_var": torch.tensor([1.0]), "w": torch.tensor([1.0])}
    state = rule.init(weights)
    for number in range(6):
        half = {"norm.running_var": -0.5 * weights["norm.running_var"], "w": torch.tensor([0.0])}
        weights, state = rule.merge([Update("a", number, half, 3)], state, weights)
        assert float(weights["norm.running_var"]) == 0.5 ** (number + 1)
    assert all("norm.running_var" not in group for group in state.values())


def test_half_precision_weights_keep_float32_moments() -> None:
    weights = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    rule = FedAdam()
    new, state = rule.merge([Update("a", 1, {"w": torch.ones(3)}, 1)], rule.init(weights), weights)
    assert new["w"].dtype == torch.bfloat16
    assert {t.dtype for group in state.values() for t in group.values()} == {torch.float32}


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fedadam.tau: Expected `float` > 0"):
        FedAdam(tau=0.0)
    with pytest.raises(ValueError, match=r"fedavgm.momentum: Expected `float` < 1"):
        FedAvgM(momentum=1.0)


def test_a_state_of_another_rule_is_refused() -> None:
    weights = {"w": torch.zeros(1)}
    update = Update("a", 1, {"w": torch.ones(1)}, 1)
    with pytest.raises(
        RuleError, match=r"fedadam: the state has no group 'root_second_moment' \(it has: \['momentum'\]\)"
    ):
        FedAdam().merge([update], FedAvgM().init(weights), weights)
