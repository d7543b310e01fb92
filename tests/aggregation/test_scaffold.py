"""SCAFFOLD's hub by hand; unlike FedAvg, it reaches the common minimum of heterogeneous sites."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.scaffold import Scaffold
from medfed.errors import RuleError
from medfed.wire.update import Update

torch.set_num_threads(1)


def update(site: str, delta: float, control: float, examples: int = 1) -> Update:
    return Update(
        site,
        2,
        {"w": torch.tensor([delta])},
        examples,
        groups={"control": {"w": torch.tensor([control])}},
    )


def test_by_hand() -> None:
    # Shares 1/4 and 3/4: x = 1 + (1/4 * 4 + 3/4 * 8) = 8; c = 0.5 + 2/4 * (1/4 * 2 + 3/4 * 6) = 0.5 + 2.5 =
    # 3.
    weights = {"w": torch.tensor([1.0])}
    state = {"control": {"w": torch.tensor([0.5])}}
    new, after = Scaffold(sites=4).merge([update("a", 4, 2), update("b", 8, 6, 3)], state, weights)
    assert new["w"].tolist() == [8.0]
    assert after["control"]["w"].tolist() == [3.0]


def test_what_is_not_trained_has_no_control() -> None:
    weights = {"w": torch.zeros(1), "frozen": torch.zeros(2), "norm.running_var": torch.ones(1)}
    delta = {"w": torch.ones(1), "frozen": torch.zeros(2), "norm.running_var": torch.ones(1)}
    sent = Update("a", 1, delta, 3, groups={"control": {"w": torch.ones(1)}})
    rule = Scaffold()
    new, after = rule.merge([sent], rule.init(weights), weights)
    assert {name: t.tolist() for name, t in after["control"].items()} == {"w": [1.0], "frozen": [0.0, 0.0]}
    assert new["norm.running_var"].tolist() == [2.0]


# Two sites with losses a_k (w - c_k)^2 / 2. Curvatures differ, so FedAvg with many local steps ends off the
# minimum.
CURVATURE, CENTRE, RATE, STEPS = (1.0, 10.0), (-1.0, 1.0), 0.05, 20
MINIMUM = sum(a * c for a, c in zip(CURVATURE, CENTRE, strict=True)) / sum(CURVATURE)


def local_steps(w: float, curvature: float, centre: float, correction: float) -> float:
    for _ in range(STEPS):
        w -= RATE * (curvature * (w - centre) + correction)
    return w


def scaffold_rounds(rounds: int) -> float:
    rule = Scaffold()
    weights: dict[str, Tensor] = {"w": torch.zeros(1, dtype=torch.float64)}
    state = rule.init(weights)
    own = [0.0, 0.0]
    for number in range(rounds):
        w, c = float(weights["w"]), float(state["control"]["w"])
        updates = []
        for k in range(2):
            local = local_steps(w, CURVATURE[k], CENTRE[k], c - own[k])
            # Option II of the paper: c_k+ = c_k - c + (x - y) / (K eta).
            fresh = own[k] - c + (w - local) / (STEPS * RATE)
            updates.append(
                Update(
                    f"s{k}",
                    number,
                    {"w": torch.tensor([local - w], dtype=torch.float64)},
                    5,
                    groups={"control": {"w": torch.tensor([fresh - own[k]], dtype=torch.float64)}},
                )
            )
            own[k] = fresh
        weights, state = rule.merge(updates, state, weights)
    # By the algorithm's invariant, the hub's control is the mean of the sites'.
    assert float(state["control"]["w"]) == pytest.approx(sum(own) / 2, abs=1e-9)
    return float(weights["w"])


def fedavg_rounds(rounds: int) -> float:
    weights: dict[str, Tensor] = {"w": torch.zeros(1, dtype=torch.float64)}
    for number in range(rounds):
        w = float(weights["w"])
        updates = [
            Update(
                f"s{k}", number, {"w": torch.tensor([local_steps(w, CURVATURE[k], CENTRE[k], 0.0) - w])}, 5
            )
            for k in range(2)
        ]
        weights, _ = FedAvg().merge(updates, {}, weights)
    return float(weights["w"])


def test_it_reaches_the_minimum_that_fedavg_misses() -> None:
    assert abs(scaffold_rounds(200) - MINIMUM) < 1e-6
    assert abs(fedavg_rounds(200) - MINIMUM) > 0.3


def test_errors_name_site_and_tensor() -> None:
    weights = {"w": torch.zeros(1)}
    rule = Scaffold(sites=1)
    with pytest.raises(RuleError, match=r"2 sites answered, but rule\.sites is 1"):
        rule.merge([update("a", 1, 1), update("b", 1, 1)], rule.init(weights), weights)
    bare = Update("c", 2, {"w": torch.ones(1)}, 1)
    with pytest.raises(RuleError, match="site 'c' for round 2 has no group 'control'"):
        rule.merge([bare], rule.init(weights), weights)
    odd = Update("d", 2, {"w": torch.ones(1)}, 1, groups={"control": {"v": torch.ones(1)}})
    with pytest.raises(RuleError, match="'v' of group 'control' is not in the global model"):
        rule.merge([odd], rule.init(weights), weights)
    empty = Update("e", 2, {"w": torch.ones(1)}, 1, groups={"control": {}})
    with pytest.raises(
        RuleError, match="site 'e' for round 2: 'w' of group 'control' is not sent by all sites"
    ):
        Scaffold().merge([update("a", 1, 1), empty], rule.init(weights), weights)
