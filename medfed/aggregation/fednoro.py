"""FedNoRo: sites whose labels are noisy are found by their losses by class, and their models weigh less.

Wu, Yu, Jiang, Cheng, Yan: FedNoRo: Towards Noise-Robust Federated Learning by Addressing Class Imbalance and
Label Noise Heterogeneity, IJCAI 2023, arXiv:2305.05230. Stage one: `warmup` rounds of FedAvg. Then each site
tells its mean loss by class under the received model (`train/class_loss/<class>`); a mixture of two Gaussians
over the sites' vectors, each class scaled by its largest loss, says who is noisy: the component of the larger
mean. Stage two: a site's share is its examples times exp(-strength D), D its model's distance to the nearest
clean site's, over the largest such distance; a clean site's D is 0.

Departures. The paper always finds noisy sites; here the Bayesian information criterion must prefer two
components to one, else all are clean. It finds them once; here each round after the warm-up anew, by that
round's received model, so that the state is empty and a site that mended its labels counts again. The mixture
is fitted to the classes' mean, which two components can be told from with few sites, and a class that a site
lacks is left out of its mean (the paper fills it with the smallest loss). The paper's noise-robust losses in
the sites (logit adjustment, distillation) are `losses`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from medfed.aggregation._distances import squared_distances
from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import Count, NotNegative, Rule, State, by_site, newest, scalar, shares, who
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

CLASS_LOSS = "train/class_loss"

# A component of the mixture is never narrower than this share of the losses' mean: two sites of equal losses
# would else have a likelihood without bound.
NARROWEST = 0.05

# Steps of expectation maximisation; on numbers on a line it has settled long before.
STEPS = 200


class FedNoRo(Rule, frozen=True, tag="fednoro"):
    """FedAvg that finds the sites with noisy labels after `warmup` rounds and weighs their models down.

    `strength` multiplies a model's scaled distance to the clean ones in its weight's exponent;
    1 is the paper's.
    """

    warmup: Count = 3
    strength: NotNegative = 1.0

    needs_each_update: ClassVar[bool] = True

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        return (CLASS_LOSS,)

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        portions = shares(sites)
        noisy = noisy_sites(sites) if newest(sites) > self.warmup else frozenset()
        if noisy:
            portions = self._weighed(sites, portions, noisy, weights)
        merged: dict[str, Tensor] = {}
        for block in sums(sites, portions, weights):
            write(merged, block, block.model(), sites)
        return merged, state

    def _weighed(
        self, sites: Sequence[Update], portions: Sequence[float], noisy: frozenset[str], weights: Weights
    ) -> list[float]:
        apart = squared_distances(sites, weights)
        clean = [number for number, update in enumerate(sites) if update.site not in noisy]
        distance = [
            float(min(apart[number, other] for other in clean)) ** 0.5 if update.site in noisy else 0.0
            for number, update in enumerate(sites)
        ]
        furthest = max(distance)
        # A distance that left float64 is the largest one can be.
        scaled = [1.0 if d == inf else d / furthest if furthest > 0 else 0.0 for d in distance]
        wanted = torch.tensor(portions, dtype=torch.float64)
        wanted *= torch.exp(-self.strength * torch.tensor(scaled, dtype=torch.float64))
        return [float(share) for share in wanted / wanted.sum()]


def noisy_sites(sites: Sequence[Update]) -> frozenset[str]:
    """Return the sites whose losses by class set them apart from the others as noisy;
    none where nothing does.
    """
    losses = _losses(sites)
    if len(losses) < 3 or float(losses.mean()) <= 0:
        return frozenset()
    two, likely, high = _two_gaussians(losses)
    # A mixture of two has three parameters more than one Gaussian: a mean, a deviation, a share.
    if 2 * (two - _one_gaussian(losses)) <= 3 * float(torch.log(torch.tensor(float(len(losses))))):
        return frozenset()
    found = frozenset(update.site for update, p in zip(sites, likely[high], strict=True) if float(p) > 0.5)
    return found if len(found) < len(sites) else frozenset()


def _losses(sites: Sequence[Update]) -> Tensor:
    """Return each site's loss (sites,): the mean over its classes, each over the class's largest among sites."""
    vectors = []
    for update in sites:
        vector = {n: v for n, v in update.scalars.items() if n.startswith(f"{CLASS_LOSS}/")}
        overall = scalar(update, CLASS_LOSS, "says how its labels fit the received model")
        vectors.append(vector or {CLASS_LOSS: overall})
    for update, vector in zip(sites, vectors, strict=True):
        for name in vector:
            if scalar(update, name, "is a loss") < 0:
                raise RuleError(
                    f"{who(update)}: scalar '{name}' is {vector[name]}; a loss of at least 0 is expected"
                )
    largest = {name: max(v.get(name, 0.0) for v in vectors) for vector in vectors for name in vector}
    scaled = [
        [v / largest[n] if largest[n] > 0 else 0.0 for n, v in sorted(vector.items())] for vector in vectors
    ]
    return torch.tensor([sum(row) / len(row) for row in scaled], dtype=torch.float64)


def _floor(losses: Tensor) -> Tensor:
    return (NARROWEST * losses.mean()) ** 2


def _log_density(losses: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((losses - mean) ** 2 / variance + torch.log(2 * torch.pi * variance))


def _one_gaussian(losses: Tensor) -> float:
    variance = torch.maximum(losses.var(correction=0), _floor(losses))
    return float(_log_density(losses, losses.mean(), variance).sum())


def _two_gaussians(losses: Tensor) -> tuple[float, Tensor, int]:
    """Return the log likelihood, each site's probabilities of both components (2, sites), and which
    is the higher one.

    Expectation maximisation from the split at the widest gap, so that no random start decides.
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
