"""FedNova, worked out by hand and on quadratics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_weight import merged, update

from medfed.aggregation import Rule
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fednova import FedNova
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

torch.set_num_threads(1)


def test_fednova_by_hand() -> None:
    # p = 1/4, 3/4; tau = 2, 6; tau_eff = 1/2 + 9/2 = 5; 5 * (1/4 * 8/2 + 3/4 * 12/6) = 5 * (1 + 1.5) = 12.5.
    result = merged(FedNova(), update("a", 8, 1, train_steps=2), update("b", 12, 3, train_steps=6))
    assert result == pytest.approx(12.5, rel=1e-14)


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1), (0.9, 0.05)])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_fednovas_length_is_how_far_sgd_gets_along_a_constant_gradient(
    momentum: float, decay: float, steps: int
) -> None:
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=1.0, momentum=momentum)
    for _ in range(steps):
        optimiser.zero_grad()
        # Gradient -1, plus the proximal term's pull back to the round's start.
        (-w + decay * w.square() / 2).sum().backward()
        optimiser.step()
    rule = FedNova(momentum=momentum, decay=decay)
    assert rule._length(update("a", 1, 1, train_steps=steps)) == pytest.approx(float(w.detach()), rel=1e-10)


def test_fednovas_length_is_the_papers_sum_for_momentum() -> None:
    # |a|_1 = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho), section 4.
    rho, tau = 0.9, 20
    expected = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    assert FedNova(momentum=rho)._length(update("a", 1, 1, train_steps=tau)) == pytest.approx(
        expected, rel=1e-12
    )


def test_fednova_solves_the_stated_problem_where_fedavg_does_not() -> None:
    # Sites at -1 and 1 with equal examples: the stated minimum is 0. One takes 1 step, the other 20, of rate
    # 0.01.
    def end(rule: Rule) -> float:
        w = {"w": torch.tensor([0.3], dtype=torch.float64)}
        for number in range(600):
            updates = []
            for site, centre, steps in (("a", -1.0, 1), ("b", 1.0, 20)):
                local = float(w["w"])
                for _ in range(steps):
                    local -= 0.01 * (local - centre)
                moved = {"w": torch.tensor([local], dtype=torch.float64)}
                updates.append(Update(site, number, Difference(moved, w), 5, {"train/steps": float(steps)}))
            w, _ = rule.merge(updates, {}, w)
        return float(w["w"])

    assert end(FedAvg()) > 0.85
    assert abs(end(FedNova())) < 0.1


@settings(max_examples=30, deadline=None)
@given(
    deltas=st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=5),
    steps=st.integers(1, 10**9),
    momentum=st.sampled_from([0.0, 0.9]),
)
def test_with_equal_steps_fednova_is_fedavg(deltas: list[float], steps: int, momentum: float) -> None:
    updates = [update(f"s{i}", d, i + 1, train_steps=steps) for i, d in enumerate(deltas)]
    slack = 1e-12 * max(map(abs, deltas))
    assert merged(FedNova(momentum=momentum), *updates) == pytest.approx(
        merged(FedAvg(), *updates), abs=slack
    )


def test_fednova_averages_running_statistics() -> None:
    weights = {"norm.running_var": torch.tensor([1.0])}
    updates = [
        Update("a", 1, {"norm.running_var": torch.tensor([-0.9])}, 1, {"train/steps": 1.0}),
        Update("b", 1, {"norm.running_var": torch.tensor([-0.9])}, 1, {"train/steps": 50.0}),
    ]
    # If divided by steps and multiplied by their mean, these would give 1 - 0.9 * 13 < 0.
    assert float(FedNova().merge(updates, {}, weights)[0]["norm.running_var"]) == pytest.approx(0.1)


def test_fednova_without_steps_names_the_site() -> None:
    with pytest.raises(RuleError, match="site 'b' for round 3 has no finite scalar 'train/steps'"):
        merged(FedNova(), update("a", 1, 1, train_steps=3), update("b", 1, 1))
    with pytest.raises(
        RuleError, match=r"site 'a' for round 3: scalar 'train/steps' is 0.0; expected a whole number"
    ):
        merged(FedNova(), update("a", 1, 1, train_steps=0.0))
