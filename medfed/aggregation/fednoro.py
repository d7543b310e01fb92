"""FedNoRo: finds the sites with noisy labels by their loss per class, and gives their models less weight.

Wu, Yu, Jiang, Cheng, Yan: FedNoRo: Towards Noise-Robust Federated Learning by Addressing Class Imbalance
and Label Noise Heterogeneity, IJCAI 2023, arXiv:2305.05230. Stage one: `warmup` rounds of FedAvg. Then
each site sends its mean loss per class under the received model (`train/class_loss/<class>`). A mixture of
two Gaussians over the sites' vectors, each class scaled by its largest loss, finds the noisy sites: those
of the component with the larger mean. Stage two: a site's share is its examples times exp(-strength D),
where D is the distance from its model to the nearest clean site's, over the largest such distance; a clean
site's D is 0.

Departures. The paper always finds noisy sites; here the Bayesian information criterion must prefer two
components to one, else all sites are clean. The paper finds them once; here they are found anew in each round
after the warm-up, from that round's received model, so the state is empty and a site that corrected its
labels counts again. The mixture is fitted to the mean over classes, which separates two components with few
sites, and a class that a site lacks is left out of its mean (the paper fills in the smallest loss). The
paper's noise-robust losses at the sites (logit adjustment, distillation) belong to `losses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from medfed.aggregation._distances import squared_distances
from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import Count, Merged, NotNegative, Rule, State, Updates
from medfed.aggregation._updates import describe, newest_round, required_scalar, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

CLASS_LOSS = "train/class_loss"

# The smallest standard deviation of a mixture component, as a share of the losses' mean: otherwise the
# likelihood of two sites with equal losses would be unbounded.
MIN_RELATIVE_DEVIATION = 0.05

# Steps of expectation maximisation, which converges much earlier in one dimension.
STEPS = 200


class FedNoRo(Rule, frozen=True, tag="fednoro"):
    """FedAvg that finds the sites with noisy labels after `warmup` rounds and gives their models less weight.

    `strength` multiplies a model's scaled distance to the clean models in the exponent of its weight;
    the paper uses 1.
    """

    warmup: Count = 3
    strength: NotNegative = 1.0

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        return (CLASS_LOSS,)

    def check(self, update: Update) -> None:
        _losses_of(update)

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        portions = shares(sites)
        noisy = noisy_sites(sites) if newest_round(sites) > self.warmup else frozenset()
        if noisy:
            portions = self._reduced_shares(sites, portions, noisy, weights)
        return add_weighted_deltas(sites, portions, weights), state

    def _reduced_shares(
        self, sites: Sequence[Update], portions: Sequence[float], noisy: frozenset[str], weights: Weights
    ) -> list[float]:
        between = squared_distances(sites, weights)
        clean = [number for number, update in enumerate(sites) if update.site not in noisy]
        distance = [
            float(min(between[number, other] for other in clean)) ** 0.5 if update.site in noisy else 0.0
            for number, update in enumerate(sites)
        ]
        furthest = max(distance)
        # A distance that overflowed float64 counts as the largest possible.
        scaled = [1.0 if d == inf else d / furthest if furthest > 0 else 0.0 for d in distance]
        reduced = torch.tensor(portions, dtype=torch.float64)
        reduced *= torch.exp(-self.strength * torch.tensor(scaled, dtype=torch.float64))
        return [float(share) for share in reduced / reduced.sum()]


def noisy_sites(sites: Sequence[Update]) -> frozenset[str]:
    """Return the sites whose losses per class separate them from the others as noisy, which may be none."""
    losses = _losses(sites)
    if len(losses) < 3 or float(losses.mean()) <= 0:
        return frozenset()
    two, likely, high = _two_gaussians(losses)
    # A mixture of two Gaussians has three more parameters than one: a mean, a deviation, a share.
    if 2 * (two - _one_gaussian(losses)) <= 3 * float(torch.log(torch.tensor(float(len(losses))))):
        return frozenset()
    noisy = frozenset(update.site for update, p in zip(sites, likely[high], strict=True) if float(p) > 0.5)
    return noisy if len(noisy) < len(sites) else frozenset()


def _losses_of(update: Update) -> Mapping[str, float]:
    """Return a site's loss per class, or its mean loss if it sends no other."""
    overall = required_scalar(update, CLASS_LOSS, "measures how well its labels fit the received model")
    vector = {n: v for n, v in update.scalars.items() if n.startswith(f"{CLASS_LOSS}/")}
    for name in vector:
        if required_scalar(update, name, "is a loss") < 0:
            raise RuleError(
                f"{describe(update)}: scalar '{name}' is {vector[name]}; a loss of at least 0 is expected"
            )
    return vector or {CLASS_LOSS: overall}


def _losses(sites: Sequence[Update]) -> Tensor:
    """Return each site's mean over classes of its loss relative to the largest site's, (sites,)."""
    vectors = [_losses_of(update) for update in sites]
    largest = {name: max(v.get(name, 0.0) for v in vectors) for vector in vectors for name in vector}
    scaled = [
        [v / largest[n] if largest[n] > 0 else 0.0 for n, v in sorted(vector.items())] for vector in vectors
    ]
    return torch.tensor([sum(row) / len(row) for row in scaled], dtype=torch.float64)


def _floor(losses: Tensor) -> Tensor:
    return (MIN_RELATIVE_DEVIATION * losses.mean()) ** 2


def _log_density(losses: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((losses - mean) ** 2 / variance + torch.log(2 * torch.pi * variance))


def _one_gaussian(losses: Tensor) -> float:
    variance = torch.maximum(losses.var(correction=0), _floor(losses))
    return float(_log_density(losses, losses.mean(), variance).sum())


def _two_gaussians(losses: Tensor) -> tuple[float, Tensor, int]:
    """Return the log likelihood, the sites' component probabilities (2, sites), and the higher component.

    Expectation maximisation starts from the split at the widest gap, so the result has no random start.
    """
    ordered = losses.sort().values
    cut = int(torch.argmax(ordered.diff()))
    threshold = (ordered[cut] + ordered[cut + 1]) / 2
    likely = torch.stack([(losses <= threshold).double(), (losses > threshold).double()])
    total = losses.new_zeros(())
    for _ in range(STEPS):
        weight = likely.sum(dim=1).clamp(min=1e-9)
        mean = (likely * losses).sum(dim=1) / weight
        variance = (likely * (losses - mean[:, None]) ** 2).sum(dim=1) / weight
        variance = torch.maximum(variance, _floor(losses))
        joint = (
            _log_density(losses, mean[:, None], variance[:, None]) + torch.log(weight / len(losses))[:, None]
        )
        total = torch.logsumexp(joint, dim=0)
        likely = torch.exp(joint - total)
    return float(total.sum()), likely, int(torch.argmax(mean))
