"""Nearest-neighbour mixing against loops in numpy, on heterogeneous hospitals, and under attack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.aggregation import Rule
from medfed.aggregation._mixing import mixed_distances, mixing_coefficients
from medfed.aggregation.bulyan import Bulyan
from medfed.aggregation.krum import Krum
from medfed.aggregation.multi_krum import MultiKrum
from medfed.wire.update import Update

torch.set_num_threads(1)


def squared(rows: np.ndarray) -> np.ndarray:
    return ((rows[:, None] - rows[None]) ** 2).sum(-1)


def mixed_by_loops(rows: np.ndarray, attackers: int) -> np.ndarray:
    out = []
    for row in rows:
        order = sorted(range(len(rows)), key=lambda other: (((rows[other] - row) ** 2).sum(), other))
        out.append(np.mean([rows[other] for other in order[: len(rows) - attackers]], axis=0))
    return np.array(out)


def merge(rule: Rule, rows: np.ndarray) -> np.ndarray:
    zero = {"w": torch.zeros(rows.shape[1], dtype=torch.float64)}
    updates = [Update(f"s{i:02}", 1, {"w": torch.from_numpy(row.copy())}, 1) for i, row in enumerate(rows)]
    return rule.merge(updates, rule.init(zero), zero)[0]["w"].numpy()


def test_three_by_hand() -> None:
    # 1, 4 and 7 with one attacker: each is averaged with its nearest; 4 lies between, and the first
    # by name wins.
    rows = np.array([[1.0], [4.0], [7.0]])
    table = mixing_coefficients(torch.from_numpy(squared(rows)), 1)
    assert (table.numpy() @ rows).ravel().tolist() == [2.5, 2.5, 5.5]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), attackers=st.integers(0, 3), huge=st.sampled_from([1.0, 1e9, 1e150]))
def test_distances_between_mixed_models_are_those_of_the_mixed_models(
    seed: int, attackers: int, huge: float
) -> None:
    rows = np.random.default_rng(seed).normal(size=(9, 5))
    rows[2] *= huge
    between = torch.from_numpy(squared(rows))
    table = mixing_coefficients(between, attackers)
    mixed = mixed_by_loops(rows, attackers)
    np.testing.assert_allclose(table.numpy() @ rows, mixed, rtol=1e-12, atol=1e-12)
    expected = squared(mixed)
    result = mixed_distances(between, table).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12 * (expected.max() + 1))
    # Averages without the huge update lose no precision to it.
    free = [i for i in range(9) if table[i, 2] == 0]
    np.testing.assert_allclose(
        result[np.ix_(free, free)], expected[np.ix_(free, free)], rtol=1e-9, atol=1e-12
    )


def test_a_site_at_an_infinite_distance_is_far_and_spoils_nothing() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [4.0], [1e200]])
    with np.errstate(over="ignore"):
        between = torch.from_numpy(squared(rows))
    mixed = mixed_distances(between, mixing_coefficients(between, 1))
    assert bool(mixed.isfinite().all())
    assert float(mixed[:4, :4].max()) < 1
    assert float(mixed[4, :4].min()) > 1e100


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_krum_and_multi_krum_choose_among_the_mixed(seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(7, 4))
    mixed = mixed_by_loops(rows, 1)
    apart = squared(mixed)
    scores = [np.sort(np.delete(row, i))[:4].sum() for i, row in enumerate(apart)]
    order = np.argsort(scores, kind="stable")
    if any(scores[order[k]] == pytest.approx(scores[order[k + 1]], rel=1e-9, abs=1e-12) for k in (0, 2)):
        return  # A tie: rounding decides which of the two is chosen.
    np.testing.assert_allclose(merge(Krum(mixing=True), rows), mixed[order[0]], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        merge(MultiKrum(keep=3, mixing=True), rows), mixed[order[:3]].mean(0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("rule", [Krum(mixing=True), MultiKrum(mixing=True)], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("bad", [-1e6, 1e30])
def test_hospitals_that_differ_are_averaged_and_the_attacker_is_left_out(rule: Rule, bad: float) -> None:
    # Four hospitals, each far from the others in its own direction; Krum without mixing selects one of them.
    honest = 3 * np.eye(4)
    rows = np.concatenate([honest, np.full((1, 4), bad)])
    np.testing.assert_allclose(merge(rule, rows), honest.mean(0), rtol=1e-12)
    alone = merge(type(rule)(), rows)
    assert np.linalg.norm(alone - honest.mean(0)) > 1


def test_bulyan_of_mixed_hospitals_is_nearer_to_their_mean() -> None:
    rng = np.random.default_rng(5)
    honest = rng.normal(size=(8, 12))
    rows = np.concatenate([honest, np.full((1, 12), 1e12)])
    away = {m: np.linalg.norm(merge(Bulyan(mixing=m), rows) - honest.mean(0)) for m in (True, False)}
    assert away[True] < 1e-9 < away[False]
