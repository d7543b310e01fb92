"""q-FedAvg against the paper's algorithm, by hand and on quadratics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_weight import merged, update

from medfed.aggregation import Rule
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.qfedavg import QFedAvg
from medfed.errors import RuleError

torch.set_num_threads(1)


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
