"""Chooses the configuration `ours` of benchmarks/flamby.py by cross-validation inside Heart's training cases alone.

    MEDFED_REAL_DATA=... python benchmarks/flamby_choose.py

No test case is read. Each hospital's training cases are cut into five folds, both classes alike; a federation of FLamby's
budget (15 rounds of 100 batches of 4 at every hospital) trains on four, and the fifth folds of all hospitals together,
normalised as one table, are what "pooled test" is to the whole. Five cuts, 25 trainings a configuration. The accuracy
decides; the log loss, which is less noisy, breaks a tie within half a standard error of the best.

The training is FedAvg in numpy, the same arithmetic as medfed's on a linear model (benchmarks/flamby.py runs the chosen one
through medfed), because 25 trainings of 6,000 steps for each of some forty configurations are hours in a real Trainer.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flamby import Centre, heart, pooled, z_score
from numpy.typing import NDArray

ROUNDS, STEPS, BATCH = 15, 100, 4
FOLDS, CUTS = 5, 5


@dataclass(frozen=True)
class Setting:
    """One point of the grid; `shared` says by whose mean and deviation the features are normalised."""

    shared: bool
    optimiser: str
    rate: float
    schedule: str
    decay: float


GRID = [
    Setting(*point)
    for point in itertools.chain(
        itertools.product(
            (False, True), ("sgd",), (0.003, 0.01, 0.03), ("constant", "cosine"), (0.0, 0.01, 0.03)
        ),
        itertools.product((False, True), ("adam",), (0.001, 0.003), ("constant", "cosine"), (0.0, 0.01)),
    )
]


def batches(size: int, drawn: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        order = drawn.permutation(size)
        for start in range(0, size, BATCH):
            yield order[start : start + BATCH]


def train(centres: Mapping[str, Centre], setting: Setting, seed: int) -> NDArray[np.float64]:
    """Return the weights (F + 1,), the bias last."""
    drawn = np.random.default_rng(seed)
    together = z_score(pooled(centres))
    held = []
    for centre in centres.values():
        normalise = together if setting.shared else z_score(centre)
        features = normalise(centre.features[centre.training])
        held.append(
            (np.c_[features, np.ones(len(features))].astype(np.float64), centre.answers[centre.training])
        )
    count = held[0][0].shape[1]
    weights = drawn.uniform(-1, 1, count) / np.sqrt(count - 1)
    share = [len(answers) / sum(len(a) for _, a in held) for _, answers in held]
    streams = [batches(len(answers), drawn) for _, answers in held]
    moments = [(np.zeros(count), np.zeros(count)) for _ in held]
    penalised = np.full(count, setting.decay)
    for number in range(ROUNDS):
        fade = 0.5 * (1 + np.cos(np.pi * number / ROUNDS)) if setting.schedule == "cosine" else 1.0
        change = np.zeros(count)
        for site, (x, y) in enumerate(held):
            local = weights.copy()
            first, second = moments[site]
            for step in range(STEPS):
                chosen = next(streams[site])
                rows = x[chosen]
                gradient = rows.T @ (1 / (1 + np.exp(-rows @ local)) - y[chosen]) / len(chosen)
                gradient += penalised * local
                if setting.optimiser == "adam":
                    steps = number * STEPS + step + 1
                    first += 0.1 * (gradient - first)
                    second += 0.001 * (gradient**2 - second)
                    scale = np.sqrt(second / (1 - 0.999**steps)) + 1e-8
                    gradient = first / (1 - 0.9**steps) / scale
                local -= setting.rate * fade * gradient
            change += share[site] * (local - weights)
        weights = weights + change
    return weights


def folds(centres: Mapping[str, Centre], cut: int) -> dict[str, NDArray[np.int64]]:
    """Return the fold of each case, -1 for a test case."""
    drawn = np.random.default_rng(cut)
    found = {}
    for name, centre in centres.items():
        fold = np.full(len(centre.training), -1)
        for answer in (0, 1):
            mine = drawn.permutation(np.flatnonzero(centre.training & (centre.answers == answer)))
            fold[mine] = (np.arange(len(mine)) + drawn.integers(FOLDS)) % FOLDS
        found[name] = fold
    return found


def validate(centres: Mapping[str, Centre], setting: Setting) -> tuple[float, float, float]:
    """Return the mean accuracy on the folds left out, its standard error, and the mean log loss."""
    right, losses = [], []
    for cut in range(CUTS):
        fold = folds(centres, cut)
        for out in range(FOLDS):
            inner = {
                name: replace(centre, training=centre.training & (fold[name] != out))
                for name, centre in centres.items()
            }
            weights = train(inner, setting, seed=cut * FOLDS + out)
            together = pooled(inner)
            left = np.concatenate([fold[name] == out for name in centres])
            logits = z_score(together)(together.features[left]) @ weights[:-1] + weights[-1]
            answers = together.answers[left]
            right.append(((logits > 0) == answers).mean())
            losses.append((np.logaddexp(0, logits) - answers * logits).mean())
    return float(np.mean(right)), float(np.std(right, ddof=1) / np.sqrt(len(right))), float(np.mean(losses))


def main() -> int:
    real = os.environ.get("MEDFED_REAL_DATA")
    if not real:
        print("set MEDFED_REAL_DATA to the folder that holds uci_heart/", file=sys.stderr)
        return 2
    centres = heart(Path(real))
    found = {}
    print(
        "| normalised by | optimiser | rate | schedule | decay | accuracy | log loss |\n|---|---|---|---|---|---|---|"
    )
    for setting in GRID:
        found[setting] = validate(centres, setting)
        accuracy, error, loss = found[setting]
        whose = "all hospitals" if setting.shared else "each its own"
        print(f"| {whose} | {setting.optimiser} | {setting.rate:g} | {setting.schedule} | {setting.decay:g} | "
              f"{accuracy:.4f} ± {error:.4f} | {loss:.4f} |", flush=True)  # fmt: skip
    best = max(found.values())
    near = {setting: result for setting, result in found.items() if result[0] >= best[0] - best[1] / 2}
    print(f"\nchosen: {min(near, key=lambda setting: near[setting][2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
