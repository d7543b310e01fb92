"""Choose the configuration `ours` of benchmarks/flamby.py by cross-validation on Heart's training cases.

    MEDFED_REAL_DATA=... python benchmarks/flamby_choose.py  # 30 s, with no shorter form

No test case is read. Each hospital's training cases are split into five folds, stratified by class. A
federation with FLamby's budget (15 rounds of 100 batches of 4 at every hospital) trains on four folds; the
fifth folds of all hospitals, pooled and normalised as one table, take the place of the pooled test cases. Ten
splits give 50 trainings per configuration. The lowest log loss on the validation folds wins: on about 90
cases, accuracy moves in steps of 0.01 and cannot distinguish similar configurations.

The training is FedAvg in numpy, with the same arithmetic as medfed's on a linear model, and runs all
trainings of a configuration at once. benchmarks/flamby.py trains the chosen configuration with medfed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flamby import Centre, heart, pooled, z_score
from numpy.typing import NDArray
from real_data import real_data

ROUNDS, STEPS, BATCH = 15, 100, 4
FOLDS, CUTS = 5, 10


@dataclass(frozen=True)
class Setting:
    """One point of the grid; with `shared`, features are normalised over all hospitals."""

    shared: bool
    optimiser: str
    rate: float
    schedule: str
    decay: float


GRID = [
    *(
        Setting(*point)
        for point in itertools.product(
            (False, True), ("sgd",), (0.003, 0.01, 0.03), ("constant", "cosine"), (0.0, 0.01)
        )
    ),
    *(
        Setting(*point)
        for point in itertools.product(
            (False, True), ("adam",), (0.001, 0.003), ("constant", "cosine"), (0.0,)
        )
    ),
]


@dataclass(frozen=True)
class Site:
    """One hospital's data for T trainings.

    Rows (T, N, F + 1), answers (T, N), the row numbers of the batches (T, steps, batch), and each row's
    weight in its batch (T, steps, batch), which is 0 in the unused places of a smaller last batch.
    """

    rows: NDArray[np.float64]
    answers: NDArray[np.float64]
    batches: NDArray[np.int64]
    weights: NDArray[np.float64]
    cases: NDArray[np.float64]


def site_of(trainings: Sequence[Mapping[str, Centre]], name: str, shared: bool) -> Site:
    rows, answers, batches, weights, cases = [], [], [], [], []
    most = max(int(centres[name].training.sum()) for centres in trainings)
    for number, centres in enumerate(trainings):
        centre = centres[name]
        normalise = z_score(pooled(centres) if shared else centre)
        x = normalise(centre.features[centre.training]).astype(np.float64)
        count = len(x)
        rows.append(np.pad(np.c_[x, np.ones(count)], ((0, most - count), (0, 0))))
        answers.append(np.pad(centre.answers[centre.training].astype(np.float64), (0, most - count)))
        drawn = np.random.default_rng([number, len(name)])
        a_pass = -(-count // BATCH)
        order = np.full((-(-ROUNDS * STEPS // a_pass), a_pass * BATCH), -1)
        for line in order:
            line[:count] = drawn.permutation(count)
        batch = order.reshape(-1, BATCH)[: ROUNDS * STEPS]
        there = batch >= 0
        batches.append(np.maximum(batch, 0))
        weights.append(there / there.sum(1, keepdims=True))
        cases.append(count)
    return Site(*map(np.array, (rows, answers, batches, weights, cases)))


def train(sites: Sequence[Site], setting: Setting) -> NDArray[np.float64]:
    """Return the weights (T, F + 1) of T trainings, with the bias last."""
    trainings, _, count = sites[0].rows.shape
    weights = np.random.default_rng(0).uniform(-1, 1, (trainings, count)) / np.sqrt(count - 1)
    total = sum(site.cases for site in sites)
    moments = [(np.zeros_like(weights), np.zeros_like(weights)) for _ in sites]
    which = np.arange(trainings)[:, None]
    for number in range(ROUNDS):
        fade = 0.5 * (1 + np.cos(np.pi * number / ROUNDS)) if setting.schedule == "cosine" else 1.0
        change = np.zeros_like(weights)
        for site, (first, second) in zip(sites, moments, strict=True):
            local = weights.copy()
            for step in range(number * STEPS, (number + 1) * STEPS):
                chosen = site.batches[:, step]
                rows = site.rows[which, chosen]
                error = 1 / (1 + np.exp(-np.einsum("tbf,tf->tb", rows, local))) - site.answers[which, chosen]
                gradient = (
                    np.einsum("tbf,tb->tf", rows, error * site.weights[:, step]) + setting.decay * local
                )
                if setting.optimiser == "adam":
                    first += 0.1 * (gradient - first)
                    second += 0.001 * (gradient**2 - second)
                    scale = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
                    gradient = first / (1 - 0.9 ** (step + 1)) / scale
                local -= setting.rate * fade * gradient
            change += (site.cases / total)[:, None] * (local - weights)
        weights = weights + change
    return weights


def folds(centres: Mapping[str, Centre], cut: int) -> dict[str, NDArray[np.int64]]:
    """Return the fold of each case, or -1 for a test case."""
    drawn = np.random.default_rng(cut)
    found = {}
    for name, centre in centres.items():
        fold = np.full(len(centre.training), -1)
        for answer in (0, 1):
            mine = drawn.permutation(np.flatnonzero(centre.training & (centre.answers == answer)))
            fold[mine] = (np.arange(len(mine)) + drawn.integers(FOLDS)) % FOLDS
        found[name] = fold
    return found


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    real = real_data("uci_heart")
    centres = heart(real)
    trainings, left = [], []
    for cut, out in itertools.product(range(CUTS), range(FOLDS)):
        fold = folds(centres, cut)
        inner = {n: replace(c, training=c.training & (fold[n] != out)) for n, c in centres.items()}
        together = pooled(inner)
        chosen = np.concatenate([fold[name] == out for name in centres])
        trainings.append(inner)
        left.append((z_score(together)(together.features[chosen]), together.answers[chosen]))
    sites = {shared: [site_of(trainings, n, shared) for n in centres] for shared in (False, True)}
    best: tuple[float, Setting] | None = None
    print(
        "| normalised by | optimiser | rate | schedule | decay | accuracy | log loss "
        "|\n|---|---|---|---|---|---|---|"
    )
    for setting in GRID:
        right, losses = [], []
        for (x, y), w in zip(left, train(sites[setting.shared], setting), strict=True):
            logits = x @ w[:-1] + w[-1]
            right.append(((logits > 0) == y).mean())
            losses.append((np.logaddexp(0, logits) - y * logits).mean())
        loss = float(np.mean(losses))
        source = "all hospitals" if setting.shared else "each its own"
        grid_point = f"{setting.optimiser} | {setting.rate:g} | {setting.schedule} | {setting.decay:g}"
        print(f"| {source} | {grid_point} | {np.mean(right):.4f} | {loss:.4f} |", flush=True)
        if best is None or loss < best[0]:
            best = loss, setting
    print(f"\nchosen: {best[1] if best else None}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
