"""The family of robust rules (median, trimmed mean, Krum, Bulyan, geometric median, norm bound, centred
clipping) against loops in numpy, and under attacks where FedAvg fails.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfed.aggregation import Rule
from medfed.aggregation.bulyan import Bulyan
from medfed.aggregation.centred_clipping import CentredClipping
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.geometric_median import GeometricMedian
from medfed.aggregation.krum import Krum
from medfed.aggregation.median import Median
from medfed.aggregation.multi_krum import MultiKrum
from medfed.aggregation.norm_bound import NormBound
from medfed.aggregation.trimmed_mean import TrimmedMean
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Difference

torch.set_num_threads(1)

# Ties are frequent among so few values, and some values are huge.
tied = st.sampled_from([-1e30, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0, 1e30])


def points(sites: int, of: st.SearchStrategy = tied) -> st.SearchStrategy:
    return hnp.arrays(np.float64, (sites, 4), elements=of)


def merge(
    rule: Rule, deltas: np.ndarray, state: object = None, examples: list[int] | None = None
) -> np.ndarray:
    """Return the merged delta of sites s00, s01, ... that send the rows of `deltas` as two tensors."""
    zero = {"a": torch.zeros(1, 3, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}
    updates = []
    for number, row in enumerate(deltas):
        tensors = {"a": torch.from_numpy(row[None, :3].copy()), "b": torch.from_numpy(row[3:].copy())}
        count = 1 if examples is None else examples[number]
        updates.append(
            Update(f"s{number:02}", 7, Difference(tensors, zero) if number % 2 else tensors, count)
        )
    new, _ = rule.merge(updates, rule.init(zero) if state is None else state, zero)
    return np.concatenate([new["a"].numpy().ravel(), new["b"].numpy()])


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 7])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_median_is_numpys(sites: int, data: st.DataObject) -> None:
    deltas = data.draw(points(sites))
    np.testing.assert_allclose(merge(Median(), deltas), np.median(deltas, axis=0), rtol=1e-12)


@pytest.mark.parametrize("sites, trim", [(3, 1), (5, 1), (5, 2), (8, 3), (4, 0)])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_trimmed_mean_by_sorting(sites: int, trim: int, data: st.DataObject) -> None:
    deltas = data.draw(points(sites))
    middle = np.sort(deltas, axis=0)[trim : sites - trim]
    np.testing.assert_allclose(merge(TrimmedMean(trim=trim), deltas), middle.mean(0), rtol=1e-12, atol=1e-300)


def test_trimming_everything_is_an_error_that_says_what_is_allowed() -> None:
    with pytest.raises(
        RuleError, match=r"round 7: trim 2 drops 4 of 4 .* at least 5 are needed; .* at most 1$"
    ):
        merge(TrimmedMean(trim=2), np.zeros((4, 4)))


def krum_by_loops(deltas: np.ndarray, attackers: int, among: list[int], neighbours: int) -> list[int]:
    scored = []
    for one in among:
        apart = sorted(float(((deltas[one] - deltas[other]) ** 2).sum()) for other in among if other != one)
        scored.append((sum(apart[:neighbours]), one))
    return [one for _, one in sorted(scored)]


normal = hnp.arrays(np.float64, (7, 4), elements=st.floats(-10, 10, allow_subnormal=False))


@settings(max_examples=40, deadline=None)
@given(deltas=normal | points(7))
def test_krum_is_one_sites_own_model(deltas: np.ndarray) -> None:
    first = krum_by_loops(deltas, 1, list(range(7)), 7 - 1 - 2)[0]
    result = merge(Krum(attackers=1), deltas)
    assert any(np.array_equal(result, row) for row in deltas)
    score = sum_to_nearest(deltas, 4)
    chosen = next(i for i, row in enumerate(deltas) if np.array_equal(result, row))
    assert score[chosen] == pytest.approx(score[first], rel=1e-9, abs=1e-12)


def sum_to_nearest(deltas: np.ndarray, neighbours: int) -> list[float]:
    apart = ((deltas[:, None] - deltas[None]) ** 2).sum(-1)
    return [float(np.sort(np.delete(row, i))[:neighbours].sum()) for i, row in enumerate(apart)]


def test_krum_by_hand_with_a_tie() -> None:
    # On a line at 0, 1, 2, 3 and 100 with one attacker, a score is the two nearest squared distances: 0: 1+4
    # = 5; 1: 1+1 = 2; 2: 1+1 = 2; 3: 1+4 = 5; 100: 97^2+98^2. Sites 1 and 2 tie; the first by name wins.
    deltas = np.zeros((5, 4))
    deltas[:, 0] = [0, 1, 2, 3, 100]
    assert merge(Krum(attackers=1), deltas)[0] == 1
    # Multi-Krum keeps n - f - 2 = 2 of them.
    assert merge(MultiKrum(attackers=1), deltas)[0] == 1.5


@settings(max_examples=30, deadline=None)
@given(column=st.lists(st.integers(-9, 9).map(float), min_size=7, max_size=7))
@example(column=[0.0, 1.0, -3.0, -7.0, -7.0, 0.0, -6.0])  # Two windows reach equally far from the median.
def test_bulyan_by_loops_with_ties(column: list[float]) -> None:
    # Whole numbers on a line: distances are exact, and ties are ties in both.
    deltas = np.zeros((7, 4))
    deltas[:, 3] = column
    np.testing.assert_allclose(merge(Bulyan(attackers=1), deltas), bulyan_by_loops(deltas, 1), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(deltas=normal)
def test_multi_krum_is_the_mean_of_the_best(deltas: np.ndarray) -> None:
    score = np.array(sum_to_nearest(deltas, 4))
    order = np.argsort(score, kind="stable")
    if score[order[3]] == pytest.approx(score[order[2]], rel=1e-9, abs=1e-12):
        return  # A tie at the border: rounding decides which of the two is kept.
    expected = deltas[order[:3]].mean(0)
    np.testing.assert_allclose(merge(MultiKrum(attackers=1, keep=3), deltas), expected, rtol=1e-9, atol=1e-12)


def test_multi_krum_that_keeps_too_many_is_an_error() -> None:
    with pytest.raises(
        RuleError, match=r"keep 5 of 7 sites; at least 8 are needed; .* keep can be at most 4"
    ):
        merge(MultiKrum(attackers=1, keep=5), np.zeros((7, 4)))


def bulyan_by_loops(deltas: np.ndarray, f: int) -> np.ndarray:
    left, chosen = list(range(len(deltas))), []
    while len(chosen) < len(deltas) - 2 * f:
        one = krum_by_loops(deltas, f, left, max(1, len(left) - f - 2))[0]
        left.remove(one)
        chosen.append(one)
    out = []
    for column in deltas[sorted(chosen)].T:
        near = sorted(sorted(column), key=lambda value: (abs(value - np.median(column)), value))
        out.append(np.mean(near[: len(chosen) - 2 * f]))
    return np.array(out)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), huge=st.booleans())
def test_bulyan_by_loops(seed: int, huge: bool) -> None:
    deltas = np.random.default_rng(seed).normal(size=(7, 4))
    if huge:
        deltas[2] = 1e30
    np.testing.assert_allclose(merge(Bulyan(attackers=1), deltas), bulyan_by_loops(deltas, 1), rtol=1e-12)


def test_bulyan_with_no_attacker_is_the_mean() -> None:
    deltas = np.random.default_rng(1).normal(size=(4, 4))
    np.testing.assert_allclose(merge(Bulyan(attackers=0), deltas), deltas.mean(0), rtol=1e-12)


def test_geometric_median_of_a_triangle_is_its_fermat_point() -> None:
    # A triangle with no angle of 120 degrees or more: seen from the point, each side spans 120 degrees. For
    # the equilateral one that is the centre; for the right one below, by Lagrange's construction, found
    # independently by the angles alone.
    deltas = np.zeros((3, 4))
    deltas[:, :2] = [[0, 0], [4, 0], [0, 3]]
    result = merge(GeometricMedian(tolerance=1e-9), deltas)
    towards = (deltas - result) / np.linalg.norm(deltas - result, axis=1, keepdims=True)
    for one, two in combinations(range(3), 2):
        assert np.degrees(np.arccos(towards[one] @ towards[two])) == pytest.approx(120, abs=1e-4)


def test_geometric_median_sits_on_a_vertex_with_a_wide_angle() -> None:
    deltas = np.zeros((3, 4))
    deltas[:, :2] = [[1, 0.1], [-9, 0], [11, 0]]
    np.testing.assert_allclose(merge(GeometricMedian(), deltas), deltas[0], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(deltas=normal)
def test_no_other_point_has_a_smaller_sum_of_distances(deltas: np.ndarray) -> None:
    result = merge(GeometricMedian(), deltas)

    def total(z: np.ndarray) -> float:
        return float(np.linalg.norm(deltas - z, axis=1).mean())

    # The pull is at most 1e-6, so no point of the hull is better by more than that times its diameter; the
    # smoothing within 1e-6 of the median length adds as much again.
    slack = 4e-6 * (np.abs(deltas).max() + 1e-9) * 2
    rng = np.random.default_rng(3)
    others = [deltas.mean(0), np.median(deltas, axis=0), *deltas, *(result + rng.normal(size=(20, 4)) * 0.01)]
    assert all(total(result) <= total(other) + slack for other in others)


@settings(max_examples=30, deadline=None)
@given(deltas=normal, by=st.sampled_from([2.0**-20, 2.0**30]), seed=st.integers(0, 9))
def test_the_geometric_median_turns_and_scales_with_its_points(
    deltas: np.ndarray, by: float, seed: int
) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))
    # A unique minimum needs points that are not collinear; the noise ensures this.
    deltas = deltas + np.random.default_rng(5).normal(size=deltas.shape)
    straight = merge(GeometricMedian(tolerance=1e-8), deltas)
    turned = merge(GeometricMedian(tolerance=1e-8), deltas @ turn.T * by) / by
    np.testing.assert_allclose(turned, turn @ straight, atol=2e-4)


def test_geometric_median_by_examples_follows_the_majority_of_examples() -> None:
    deltas = np.zeros((3, 4))
    deltas[:, 0] = [1, 2, 9]
    assert merge(GeometricMedian(), deltas)[0] == pytest.approx(2, abs=1e-4)
    assert merge(GeometricMedian(by_examples=True), deltas, examples=[1, 1, 5])[0] == pytest.approx(
        9, abs=1e-4
    )


def test_geometric_median_that_has_not_converged_says_so() -> None:
    with pytest.raises(
        RuleError, match=r"round 7: after 1 iterations the sites still pull by .*, tolerance is 1e-09"
    ):
        merge(GeometricMedian(iterations=1, tolerance=1e-9), np.random.default_rng(0).normal(size=(5, 4)))


def test_norm_bound_by_hand() -> None:
    # Norms 5, 1 and 10 with bound 5: the last is halved. Examples 1, 2, 1 give weights 1/4, 1/2, 1/4.
    deltas = np.array([[3.0, 4, 0, 0], [0, 1, 0, 0], [0, 0, 6, 8]])
    expected = 0.25 * deltas[0] + 0.5 * deltas[1] + 0.25 * 0.5 * deltas[2]
    np.testing.assert_allclose(
        merge(NormBound(longest=5.0), deltas, examples=[1, 2, 1]), expected, rtol=1e-14
    )
    # By default, the bound is the median norm, which is also 5.
    np.testing.assert_allclose(merge(NormBound(), deltas, examples=[1, 2, 1]), expected, rtol=1e-14)


@settings(max_examples=30, deadline=None)
@given(deltas=normal)
def test_a_bound_that_none_reaches_is_fedavg(deltas: np.ndarray) -> None:
    assert np.array_equal(merge(NormBound(longest=1e3), deltas), merge(FedAvg(), deltas))


def clipping_by_loops(deltas: np.ndarray, centre: np.ndarray, radius: float | None, steps: int) -> np.ndarray:
    for _ in range(steps):
        apart = [np.linalg.norm(row - centre) for row in deltas]
        tau = sorted(apart)[(len(apart) - 1) // 2] if radius is None else radius
        scale = [1.0 if d <= tau else tau / d for d in apart]
        centre = centre + np.mean([s * (row - centre) for s, row in zip(scale, deltas, strict=True)], axis=0)
    return centre


@pytest.mark.parametrize("radius", [None, 2.0])
@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(normal, min_size=1, max_size=3))
def test_centred_clipping_by_loops_over_rounds(radius: float | None, rounds: list[np.ndarray]) -> None:
    rule = CentredClipping(radius=radius)
    weights = {"w": torch.zeros(4, dtype=torch.float64)}
    state = rule.init(weights)
    centre = np.zeros(4)
    for deltas in rounds:
        before = weights["w"].numpy()
        updates = [Update(f"s{i}", 1, {"w": torch.from_numpy(row.copy())}, 1) for i, row in enumerate(deltas)]
        weights, state = rule.merge(updates, state, weights)
        centre = clipping_by_loops(deltas, centre, radius, steps=3)
        np.testing.assert_allclose(weights["w"].numpy() - before, centre, rtol=1e-7, atol=1e-7)


# The attacks. Each takes the honest deltas and the honest models' minimum, and returns one delta for all
# attackers.


def sign_flip(honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # So long that the mean points away from the minimum: 9 honest deltas, and -12 of the 2 attackers.
    return -6 * honest.mean(0)


def million(honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1e6 * honest.mean(0)


def noise(honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=honest.shape[1]) * 50


def a_little(honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # Baruch, Baruch, Goldberg, NeurIPS 2019, arXiv:1902.06156: all collude on mean minus z standard
    # deviations, inside the honest sites' spread. With n = 11 and f = 2, s = 4 honest sites must be won over
    # of 9, z = 0.14 by the paper's formula; 1.5 is what their experiments use on the larger spread of real
    # training.
    return honest.mean(0) - 1.5 * honest.std(0)


def everything_huge(honest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.full(honest.shape[1], 1e30)


ATTACKS = [sign_flip, million, noise, a_little, everything_huge]
ROBUST = [
    Median(),
    TrimmedMean(trim=2),
    Krum(attackers=2),
    MultiKrum(attackers=2),
    Bulyan(attackers=2),
    GeometricMedian(),
    CentredClipping(),
]
SITES, ATTACKERS, WEIGHTS = 11, 2, 30


def train(rule: Rule, attack: object, rounds: int = 60) -> tuple[float, float]:
    """Return the distance of the result from the honest sites' minimum, and the sites' spread.

    Site k has loss |w - c_k|^2 / 2 with c_k near a common centre, and takes a step of 0.3: delta = 0.3 (c_k -
    w). The honest minimum is the mean of their c_k.
    """
    rng = np.random.default_rng(11)
    centre = rng.normal(size=WEIGHTS) * 3
    own = centre + 0.3 * rng.normal(size=(SITES - ATTACKERS, WEIGHTS))
    weights = {"w": torch.zeros(WEIGHTS, dtype=torch.float64)}
    state = rule.init(weights)
    for number in range(rounds):
        honest = 0.3 * (own - weights["w"].numpy())
        bad = attack(honest, rng)  # type: ignore[operator]
        rows = [*honest, *[bad] * ATTACKERS]
        updates = [
            Update(f"s{i:02}", number, {"w": torch.from_numpy(r.copy())}, 1) for i, r in enumerate(rows)
        ]
        weights, state = rule.merge(updates, state, weights)
    spread = float(np.linalg.norm(own - own.mean(0), axis=1).mean())
    away = weights["w"].numpy() - own.mean(0)
    # A norm without squares, which overflow when FedAvg's weights reach 1e200.
    return float(np.abs(away).max() * np.linalg.norm(away / np.abs(away).max())), spread


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("rule", ROBUST, ids=lambda r: type(r).__name__)
def test_two_of_eleven_attackers_leave_it_near_the_honest_minimum(rule: Rule, attack: object) -> None:
    result, spread = train(rule, attack)
    # The honest sites' own spread is what no robust rule can tell apart from an attack (Krum keeps one site's
    # model, so even without an attack it ends about one spread away).
    assert result <= 1.3 * spread


@pytest.mark.parametrize("attack", [sign_flip, million, noise, everything_huge], ids=lambda a: a.__name__)
def test_fedavg_fails_under_the_same_attacks(attack: object) -> None:
    try:
        result, spread = train(FedAvg(), attack)
    except RuleError:
        return  # The weights overflowed float64.
    assert result > 3 * spread


@pytest.mark.parametrize("rule", ROBUST, ids=lambda r: type(r).__name__)
def test_a_little_is_enough_stays_within_the_spread(rule: Rule) -> None:
    # The attack's point: hidden in the spread it moves most robust rules further than the mean, which it
    # moves by f z / (n - f) of a standard deviation; what they still promise is to stay within the honest
    # sites' spread.
    average, spread = train(FedAvg(), a_little)
    result, _ = train(rule, a_little)
    assert average < 0.5 * spread
    assert result <= 1.3 * spread


def test_norm_bound_keeps_a_huge_update_within_one_round() -> None:
    # The rule only bounds one round's harm, by f / n of a median norm.
    rng = np.random.default_rng(2)
    honest = rng.normal(size=(9, 4))
    rows = np.concatenate([honest, np.full((2, 4), 1e6)])
    clean, attacked = merge(NormBound(), honest), merge(NormBound(), rows)
    longest = np.sort(np.linalg.norm(honest, axis=1))
    assert np.linalg.norm(attacked - clean) <= 2 * (2 / 11) * longest[-1]
    assert np.linalg.norm(merge(FedAvg(), rows)) > 1e5


@pytest.mark.parametrize(
    "rule", [Median(), TrimmedMean(trim=2), GeometricMedian()], ids=lambda r: type(r).__name__
)
def test_more_attackers_than_promised_do_break_it(rule: Rule) -> None:
    # With six attackers of eleven the rules fail, so the tests above do not pass for another reason.
    honest = np.random.default_rng(4).normal(size=(5, 4))
    rows = np.concatenate([honest, np.full((6, 4), 1e6)])
    assert np.linalg.norm(merge(rule, rows)) > 1e5


def test_sites_examples_cannot_buy_a_majority() -> None:
    deltas = np.zeros((7, 4))
    deltas[0] = 50
    for rule in (Median(), TrimmedMean(), Krum(), MultiKrum(), Bulyan(), GeometricMedian()):
        assert np.abs(merge(rule, deltas, examples=[10**9, *[1] * 6])).max() < 1e-6


def test_a_site_whose_values_are_not_finite_is_named() -> None:
    deltas = np.zeros((7, 4))
    deltas[3, 1] = np.nan
    for rule in (Median(), Krum(), Bulyan(), GeometricMedian(), NormBound(), CentredClipping()):
        with pytest.raises(RuleError, match="'s03'"):
            merge(rule, deltas)
