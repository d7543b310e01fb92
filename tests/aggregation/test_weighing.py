"""FedNova, q-FedAvg, cyclic transfer and FedBuff, each worked out by hand and on quadratics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.aggregation import Rule
from medfed.aggregation.cyclic import Cyclic
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedbuff import FedBuff
from medfed.aggregation.fednova import FedNova
from medfed.aggregation.qfedavg import QFedAvg
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

torch.set_num_threads(1)


def update(site: str, delta: float, examples: int, round: int = 3, **scalars: float) -> Update:
    named = {name.replace("_", "/", 1): value for name, value in scalars.items()}
    return Update(site, round, {"w": torch.tensor([delta], dtype=torch.float64)}, examples, named)


def merged(rule: Rule, *updates: Update) -> float:
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    return float(rule.merge(updates, rule.init(weights), weights)[0]["w"])


def test_fednova_by_hand() -> None:
    # p = 1/4, 3/4; tau = 2, 6; tau_eff = 1/2 + 9/2 = 5; 5 * (1/4 * 8/2 + 3/4 * 12/6) = 5 * (1 + 1.5) = 12.5.
    found = merged(FedNova(), update("a", 8, 1, train_steps=2), update("b", 12, 3, train_steps=6))
    assert found == pytest.approx(12.5, rel=1e-14)


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


def independent_qfedavg(rows: list[tuple[float, int, float]], q: float, rate: float) -> float:
    """Compute algorithm 2 of arXiv:1905.10497, with p_k; rows are (delta, examples, loss)."""
    lipschitz, total = 1 / rate, sum(n for _, n, _ in rows)
    step = bound = 0.0
    for delta, n, loss in rows:
        gradient = lipschitz * -delta
        step += n / total * loss**q * gradient
        bound += n / total * (q * loss ** (q - 1) * gradient**2 + lipschitz * loss**q)
    return -step / bound


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(-10, 10, allow_subnormal=False), st.integers(1, 50), st.floats(0.01, 10)),
        min_size=1,
        max_size=5,
    ),
    q=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 5.0]),
)
def test_qfedavg_is_the_papers_algorithm(rows: list[tuple[float, int, float]], q: float) -> None:
    updates = [update(f"s{i}", d, n, train_loss_before=loss) for i, (d, n, loss) in enumerate(rows)]
    assert merged(QFedAvg(q=q, learning_rate=0.1), *updates) == pytest.approx(
        independent_qfedavg(rows, q, 0.1), rel=1e-9, abs=1e-12
    )


def test_qfedavg_without_a_learning_rate_by_hand() -> None:
    # Losses 1 and 3 with q 1 and examples 3 and 1: weights 3/4 * 1 and 1/4 * 3, so half each, where
    # FedAvg says 1/4.
    both = [update("a", 0, 3, train_loss_before=1.0), update("b", 4, 1, train_loss_before=3.0)]
    assert merged(QFedAvg(q=1.0), *both) == pytest.approx(2.0, rel=1e-12)
    assert merged(FedAvg(), *both) == 1.0
    # The paper's formula converges to this as the learning rate grows.
    assert merged(QFedAvg(q=1.0, learning_rate=1e9), *both) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("rate", [0.1, None])
def test_qfedavg_makes_losses_more_alike(rate: float | None) -> None:
    # Quadratics at 0 (three quarters of the examples) and at 4: FedAvg ends at 1, losses 0.5 and 4.5.
    def losses(rule: Rule) -> tuple[float, float]:
        w = {"w": torch.tensor([0.5], dtype=torch.float64)}
        for number in range(400):
            at = float(w["w"])
            w, _ = rule.merge(
                [
                    update("a", 0.1 * (0 - at), 3, number, train_loss_before=at**2 / 2),
                    update("b", 0.1 * (4 - at), 1, number, train_loss_before=(at - 4) ** 2 / 2),
                ],
                {},
                w,
            )
        return float(w["w"]) ** 2 / 2, (float(w["w"]) - 4) ** 2 / 2

    few, many = losses(FedAvg()), losses(QFedAvg(q=2.0, learning_rate=rate))
    assert few == pytest.approx((0.5, 4.5), rel=1e-3)
    assert max(many) - min(many) < 0.6 * (max(few) - min(few))


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0, 5.0])
def test_qfedavg_with_losses_of_zero(q: float) -> None:
    rule = QFedAvg(q=q)
    # All losses zero: equal shares. One loss zero: its site hardly counts, and the other's step stays finite.
    both = [update("a", 2, 1, train_loss_before=0.0), update("b", 4, 1, train_loss_before=0.0)]
    assert merged(rule, *both) == 3.0
    one = [update("a", 0, 1, train_loss_before=0.0), update("b", 4, 1, train_loss_before=1e30)]
    assert 0 <= merged(rule, *one) <= 4


def test_qfedavg_refuses_what_is_no_loss() -> None:
    with pytest.raises(RuleError, match="site 'a' for round 3 has no finite scalar 'train/loss_before'"):
        merged(QFedAvg(), update("a", 1, 1))
    with pytest.raises(RuleError, match="needs a loss of at least 0"):
        merged(QFedAvg(), update("a", 1, 1, train_loss_before=-0.5))


def test_cyclic_takes_the_one_model_bit_for_bit() -> None:
    g = torch.Generator().manual_seed(0)
    weights, local = {"w": torch.randn(50, generator=g)}, {"w": torch.randn(50, generator=g) * 1e-9}
    new, state = Cyclic().merge([Update("a", 1, Difference(local, weights), 4)], {}, weights)
    assert torch.equal(new["w"], local["w"])
    assert state == {}


def test_cyclic_refuses_two_sites() -> None:
    with pytest.raises(RuleError, match=r"round 3: 2 sites answered \('a', 'b'\), exactly 1 is expected"):
        merged(Cyclic(), update("a", 1, 1), update("b", 1, 1))


def test_fedbuff_by_hand() -> None:
    # Rounds 5 and 2 at merge 5: staleness 0 and 3, factors 1 and 1/2, shares 1/4 and 3/4: 8/4 + 3/4 * 1/2 *
    # 16 = 8.
    assert merged(FedBuff(), update("a", 8, 1, 5), update("b", 16, 3, 2)) == pytest.approx(8.0, rel=1e-14)


def test_fedbuff_takes_two_updates_of_one_site_but_not_twice_the_same() -> None:
    assert merged(FedBuff(staleness_power=0), update("a", 2, 1, 4), update("a", 4, 1, 5)) == 3.0
    with pytest.raises(RuleError, match="two updates of site 'a' for round 4; only one per site and round"):
        merged(FedBuff(), update("a", 2, 1, 4), update("a", 4, 1, 4))


def test_fedbuff_knows_that_a_whole_buffer_is_late() -> None:
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    rule = FedBuff()
    state = rule.init(weights)
    for number in range(4):
        _, state = rule.merge([update("a", 1, 1, number)], state, weights)
    # Merges 0 to 3 are done; an update of round 1 comes in the fourth: staleness 3, factor 1/2.
    new, _ = rule.merge([update("b", 10, 1, 1)], state, weights)
    assert float(new["w"]) == pytest.approx(5.0, rel=1e-14)


def test_fedbuff_of_fresh_updates_is_fedavg() -> None:
    updates = [update("a", 0.1, 3), update("b", 7.3, 4), update("c", -2.0, 9)]
    assert merged(FedBuff(), *updates) == merged(FedAvg(), *updates)
