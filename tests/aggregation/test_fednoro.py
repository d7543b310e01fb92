"""FedNoRo's noisy sites against scikit-learn's mixture, and their models' weights by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fednoro import FedNoRo, _losses, _two_gaussians, noisy_sites
from medfed.errors import RuleError
from medfed.wire.update import Update

torch.set_num_threads(1)


def update(site: str, losses: list[float], value: float = 0.0, examples: int = 10, round: int = 9) -> Update:
    named = {f"train/class_loss/{k}": loss for k, loss in enumerate(losses)}
    scalars = {**named, "train/class_loss": sum(losses) / len(losses)}
    return Update(site, round, {"w": torch.tensor([value], dtype=torch.float64)}, examples, scalars)


def merged(rule, *updates: Update) -> float:
    zero = {"w": torch.zeros(1, dtype=torch.float64)}
    return float(rule.merge(updates, {}, zero)[0]["w"])


def sites_of(losses: list[float]) -> list[Update]:
    return [update(f"s{number:02}", [loss, loss * 1.1]) for number, loss in enumerate(losses)]


def test_two_of_six_with_high_losses_are_found() -> None:
    assert noisy_sites(sites_of([0.30, 0.32, 1.1, 0.28, 0.33, 1.3])) == {"s02", "s05"}


@pytest.mark.parametrize("losses", [[0.3, 0.31, 0.29, 0.32], [0.5] * 6, [0.2, 0.25, 0.3, 0.35, 0.4, 0.45]])
def test_sites_that_are_alike_or_spread_evenly_are_all_clean(losses: list[float]) -> None:
    assert noisy_sites(sites_of(losses)) == frozenset()


def test_a_site_without_a_class_is_judged_by_the_ones_it_has() -> None:
    sites = [
        update("a", [0.3, 0.6]),
        update("b", [0.31]),
        update("c", [0.29, 0.62]),
        update("d", [0.9, 1.9]),
        update("e", [0.3, 0.58]),
    ]
    assert noisy_sites(sites) == {"d"}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), clean=st.integers(4, 12), noisy=st.integers(2, 4))
def test_groups_apart_by_more_than_their_widths_are_separated(seed: int, clean: int, noisy: int) -> None:
    # Bounded draws: a normal one could lie halfway between the groups and belong to neither.
    draw = np.random.default_rng(seed)
    losses = np.concatenate([draw.uniform(0.3, 0.5, clean), draw.uniform(1.0, 1.4, noisy)])
    assert noisy_sites(sites_of(list(losses))) == {f"s{clean + number:02}" for number in range(noisy)}


def test_the_mixture_is_as_likely_as_scikit_learns() -> None:
    from sklearn.mixture import GaussianMixture

    draw = np.random.default_rng(1)
    values = _losses(sites_of(list(np.concatenate([draw.normal(0.4, 0.1, 12), draw.normal(1.2, 0.2, 6)]))))
    likelihood, likely, high = _two_gaussians(values)
    theirs = GaussianMixture(2, n_init=20, random_state=0, tol=1e-9, max_iter=1000).fit(
        values.numpy()[:, None]
    )
    assert likelihood == pytest.approx(theirs.score(values.numpy()[:, None]) * len(values), rel=1e-3)
    noisy = theirs.predict(values.numpy()[:, None]) == int(np.argmax(theirs.means_))
    assert np.array_equal(likely[high].numpy() > 0.5, noisy)


def test_during_the_warm_up_and_among_clean_sites_it_is_fedavg() -> None:
    early = [
        update(s, [loss], v, round=2)
        for s, loss, v in (("a", 0.3, 1), ("b", 0.3, 2), ("c", 3.0, 9), ("d", 0.31, 4))
    ]
    assert merged(FedNoRo(warmup=3), *early) == merged(FedAvg(), *early)
    clean = [update(s, [0.3], v) for s, v in (("a", 1), ("b", 2), ("c", 9))]
    assert merged(FedNoRo(), *clean) == merged(FedAvg(), *clean)


def test_the_weights_by_hand() -> None:
    # Clean a, b, c at 0, 1, 2; noisy d at 6 and e at 4: to the nearest clean one (c) 4 and 2, over the
    # largest 1 and 0.5. Shares are as 10, 10, 10, 10 exp(-1), 10 exp(-0.5).
    updates = [
        update("a", [0.3], 0),
        update("b", [0.31], 1),
        update("c", [0.29], 2),
        update("d", [1.4], 6),
        update("e", [1.5], 4),
    ]
    one, half = math.exp(-1), math.exp(-0.5)
    assert merged(FedNoRo(), *updates) == pytest.approx(
        (1 + 2 + 6 * one + 4 * half) / (3 + one + half), rel=1e-12
    )
    assert merged(FedNoRo(strength=0), *updates) == pytest.approx(merged(FedAvg(), *updates), rel=1e-12)


def test_a_site_that_reports_no_loss_is_named() -> None:
    bare = Update("b", 9, {"w": torch.zeros(1, dtype=torch.float64)}, 1, {})
    with pytest.raises(RuleError, match="site 'b' for round 9 has no finite scalar 'train/class_loss'"):
        merged(FedNoRo(), update("a", [0.3]), bare, update("c", [0.3]))
