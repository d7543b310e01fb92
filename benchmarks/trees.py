"""Compare boosted trees with linear models on Fed-Heart-Disease and Fed-TCGA-BRCA.

    MEDFED_REAL_DATA=... python benchmarks/trees.py [--seeds 0 1 2]

Hospitals and features are FLamby's (benchmarks/flamby.py). Trees grow from sums over hospitals by medfed's
rule and network, without exchange and Trainer, which change no bit of them (tests/pipeline). The linear model
is fitted to its optimum on the pooled training cases (logistic regression, or Cox's likelihood stratified by
hospital; L2 of 1, features standardised), which federated training at best reaches. The first split is
FLamby's; each seed draws another, four fifths of each hospital's cases for training. Figures are of all
hospitals' test cases pooled: AUROC and accuracy, or the C-index within hospitals.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from flamby import Centre, brca, heart, of_all
from torch import Tensor

from medfed.aggregation.boosted_trees import BoostedTrees as Rule
from medfed.models.losses import Loss
from medfed.models.losses.cox import Cox
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.networks.boosted_trees import BoostedTrees as Network
from medfed.models.tasks._scores import c_index, mean_auroc
from medfed.study.trees import rounds_of
from medfed.wire.update import Update
from medfed.wire.weights import Difference, load, weights_of

NETWORK = Network(trees=50, depth=2)
RULE = Rule(learning_rate=0.1, min_patients=10)

# The features and answers of each hospital.
Cases = list[tuple[Tensor, Tensor]]


def cases(centres: Mapping[str, Centre], *, training: bool) -> Cases:
    chosen = [(c, c.training if training else ~c.training) for c in centres.values()]
    return [
        (torch.tensor(c.features[rows]), torch.tensor(c.answers[rows])) for c, rows in chosen if rows.any()
    ]


def divided(centres: Mapping[str, Centre], seed: int) -> dict[str, Centre]:
    """Return the hospitals with four fifths of each one's cases for training."""
    generator = np.random.default_rng(seed)
    return {
        name: replace(
            centre, training=generator.permutation(len(centre.training)) >= len(centre.training) // 5
        )
        for name, centre in centres.items()
    }


def trees(training: Cases, loss: Loss, outputs: int) -> torch.nn.Module:
    """Return the trees that grow from these hospitals' sums."""
    module = NETWORK.build(training[0][0].shape[1], outputs)
    if isinstance(loss, Cox):
        module.classifies.zero_()
    model = weights_of(module)
    for number in range(rounds_of(NETWORK)):
        updates = []
        for site, (features, target) in enumerate(training):
            load(module, model)
            module.collect(features, lambda scores, target=target: loss.derivatives(scores, target))
            updates.append(Update(f"{site}", number, Difference(weights_of(module), model), len(features)))
        model, _ = RULE.merge(updates, {}, model)
    load(module, model)
    return module


def linear(training: Cases, loss: Loss, outputs: int) -> torch.nn.Module:
    """Return the linear model at the optimum of all hospitals' losses together, with an L2 of 1."""
    module = torch.nn.Linear(training[0][0].shape[1], 1).double()
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    total = Cox(per="examples") if isinstance(loss, Cox) else loss

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = module.weight.square().sum() / 2
        for features, target in training:
            scores = module(features.double())
            logits = torch.cat([torch.zeros_like(scores), scores], dim=1) if outputs == 2 else scores
            value = value + total.value(logits, target) * len(target)
        value.backward()
        return value

    optimiser.step(closure)
    return module


def measured(scores: list[Tensor], answers: list[Tensor]) -> dict[str, float]:
    if answers[0].ndim == 2:
        within = [
            (c_index(score.numpy(), *answer.double().numpy().T), len(score))
            for score, answer in zip(scores, answers, strict=True)
        ]
        known = [(value, count) for value, count in within if value is not None]
        return {"c_index": sum(v * n for v, n in known) / sum(n for _, n in known)}
    score, answer = torch.cat(scores), torch.cat(answers)
    both = torch.stack([(-score).sigmoid(), score.sigmoid()], dim=1)
    auroc = mean_auroc(both.numpy(), answer.numpy())
    return {"auroc": auroc or float("nan"), "accuracy": float(((score > 0) == (answer == 1)).double().mean())}


def compared(centres: Mapping[str, Centre], loss: Loss, outputs: int) -> dict[str, dict[str, float]]:
    """Return the figures of trees and linear model on the test cases."""
    middle, spread = of_all(centres)
    scaled = {
        name: replace(c, features=((c.features - middle) / (spread + 1e-9)).astype(np.float32))
        for name, c in centres.items()
    }
    training, test = cases(scaled, training=True), cases(scaled, training=False)
    answers = [answer for _, answer in test]
    with torch.no_grad():
        grown = [
            trees_score(features) for trees_score in [trees(training, loss, outputs)] for features, _ in test
        ]
    fitted = linear(training, loss, outputs)
    with torch.no_grad():
        straight = [fitted(features.double())[:, 0] for features, _ in test]
    return {
        "trees": measured([one[:, -1].double() for one in grown], answers),
        "linear": measured(straight, answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    seeds, real = parser.parse_args().seeds, Path(os.environ["MEDFED_REAL_DATA"])
    for name, centres, loss, outputs in (
        ("heart", heart(real), CrossEntropy(), 2),
        ("brca", brca(real), Cox(), 1),
    ):
        found = {"FLamby": compared(centres, loss, outputs)}
        found |= {f"seed {seed}": compared(divided(centres, seed), loss, outputs) for seed in seeds}
        for split, models in found.items():
            for model, figures in models.items():
                print(name, split, model, " ".join(f"{key} {value:.3f}" for key, value in figures.items()))
        for model in ("trees", "linear"):
            each = [found[f"seed {seed}"][model] for seed in seeds]
            means = {key: mean(one[key] for one in each) for key in (each[0] if each else ())}
            print(
                name, "mean of seeds", model, " ".join(f"{key} {value:.3f}" for key, value in means.items())
            )


if __name__ == "__main__":
    main()
