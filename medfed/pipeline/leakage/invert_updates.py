"""Invert one hospital's update of a single step, as an attacker sees it, back to its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from medfed.data.samplers import collate
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.constant import Constant
from medfed.pipeline.factory import module_of
from medfed.pipeline.leakage.attacker_view import Item, loss_of, visible_update
from medfed.pipeline.leakage.findings import AttackBudget, Inversion
from medfed.privacy import Privacy
from medfed.privacy.attacks.inversion import Prior, first_linear, from_linear, invert, mismatch, recovered
from medfed.registry import kind_of
from medfed.study.study import Study
from medfed.wire.weights import Weights, weights_of

# The maximum of the hospital's other cases from which the attacker is assumed to know the mean.
MAX_OTHERS = 64
# First steps and weights of smoothness with which gradient matching is tried; the attack keeps whatever fits
# the update best. Small networks on small images need the first, 3D networks with instance norm the second.
# On the quickstart study's 28^3 patches the first finds nothing and the second begins to.
MATCHING_SETTINGS = ((0.1, 1e-4), (0.01, 0.1))
# The learning rate of the attacked update's only step: the update is then the gradient itself.
LEARNING_RATE = 1.0


def attack_update(
    study: Study, items: Sequence[Item], count: int, privacy: Privacy, budget: AttackBudget
) -> tuple[Inversion, dict[str, Tensor]]:
    """Return how much of the first `count` cases is reconstructed; and the cases, their mean, the result."""
    victims, rest = list(items[:count]), list(items[count : count + MAX_OTHERS])
    single = _one_step(study, count)
    module = module_of(single)
    start = weights_of(module, study.keep_local, trained_only=study.trained_only)
    difference = visible_update(single, victims, rest, privacy.planned(study.train.rounds), start)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    gradient = {name: -difference[name].float() / LEARNING_RATE for name in names if name in difference}
    key = "image" if "image" in victims[0] else "features"
    true = torch.stack([item[key].float() for item in victims])
    known = torch.stack([item[key].float() for item in rest])
    prior = _prior(known, key)
    reconstructed = _reconstruct(module, gradient, victims, key, prior, budget)
    scores = recovered(reconstructed, true, prior.mean)
    guesses = [
        max(recovered(known[k : k + count], true, prior.mean)) for k in range(0, len(rest) - count + 1, count)
    ]
    inversion = Inversion(
        kind_of(privacy), count, max(scores), float(np.mean(scores)), float(np.mean(guesses or [0.0]))
    )
    return inversion, {"true": true, "mean": prior.mean, kind_of(privacy): reconstructed}


def _one_step(study: Study, count: int) -> Study:
    """Return the study with one round of one step over `count` cases."""
    train = msgspec.structs.replace(
        study.train, rounds=1, epochs=1, batch=count, accumulate=1, clip=None, precision=32,
        optimiser=SGD(lr=LEARNING_RATE), schedule=Constant(),
    )  # fmt: skip
    return msgspec.structs.replace(study, train=train, site_overrides={})


def _prior(known: Tensor, key: str) -> Prior:
    """Return what the attacker knows: mean and range of other cases, of a table the range of each column."""
    if key == "features":
        return Prior(known.mean(0), known.amin(0), known.amax(0))
    return Prior(known.mean(0), known.amin(), known.amax())


def _reconstruct(
    module: pl.LightningModule,
    gradient: Weights,
    victims: Sequence[Item],
    key: str,
    prior: Prior,
    budget: AttackBudget,
) -> Tensor:
    """Return the reconstructed inputs (cases, ...): exact if possible, else the best of several tries."""
    linear = first_linear(module)
    if len(victims) == 1 and linear is not None and all(name in gradient for name in linear):
        return from_linear(gradient, *linear).reshape(1, *prior.mean.shape)
    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.eval()
    parameters = {name: value for name, value in module.named_parameters() if name in gradient}
    targets = {name: value for name, value in collate(list(victims)).items() if name != key}

    def gradient_of(inputs: Tensor) -> Mapping[str, Tensor]:
        loss = loss_of(module, {**targets, key: inputs})
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        return dict(zip(parameters, slopes, strict=True))

    attack = partial(invert, gradient, gradient_of, len(victims), prior, steps=budget.steps, seed=budget.seed)
    rates = MATCHING_SETTINGS if prior.mean.ndim > 1 else MATCHING_SETTINGS[:1]
    tries = [attack(rate=rate, smooth=smooth) for rate, smooth in rates]
    return min(tries, key=lambda inputs: mismatch(inputs, gradient, gradient_of))
