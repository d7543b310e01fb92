"""Client-level differential privacy: each site's whole update is clipped and noised.

McMahan, Ramage, Talwar, Zhang: Learning Differentially Private Recurrent Language Models, ICLR 2018,
arXiv:1710.06963; adaptive clipping is Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning
with Adaptive Clipping, NeurIPS 2021, arXiv:1905.03871. Departures: all sites have the same weight, so that
the sum's sensitivity is the clip; no amplification by sampling is counted, because a round's sites are drawn
from the study's seed, which everyone knows; with few sites the noise on the clip's count is larger than the
paper's n / 20.

Under `distributed_dp` the sites add the noise together in a secure sum, so that nobody is trusted with bare
updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from medfed.errors import PrivacyError
from medfed.privacy._client_noise import ClientNoise
from medfed.privacy._clipping import clipped, factor, noised, scaled
from medfed.privacy._noise import add_gaussian
from medfed.privacy._privacy import GROUP, Positive, PrivacyState, public_only
from medfed.registry import kind_of
from medfed.wire.update import Update
from medfed.wire.weights import Weights, norm

CLIP = f"{GROUP}clip"

# The site name of the update that stands for all sites of a round.
EVERYONE = "all-sites"


class Adaptive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A clip that follows the updates' norms: after each round it moves towards their `quantile`.

    rate: the paper's learning rate of the clip's logarithm, 0.2.  count_noise: the standard deviation of the
    noise on how many updates were short enough; if null, a twentieth of the sites, but at least
    the noise multiplier, because with few sites less would leave no budget for the updates themselves.
    """

    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    rate: Positive = 0.2
    count_noise: Positive | None = None


class ClientDP(ClientNoise, tag="client_dp", frozen=True):
    """Noised updates: neither a site's update nor the merged model reveals that site's contribution.

    `where: hub` (central) protects each site against everyone but the hub, which sees the updates, clips them
    and adds noise of `noise_multiplier` times `clip` to their sum: neighbours differ by the presence of one
    site's update. `where: site` (local) protects it against the hub too: noise is added before an update
    leaves, and since any two updates must look alike, it is `noise_multiplier` times twice the `clip`. With
    few sites that costs most of the accuracy, because noise averages out only over sites.

    Give `noise_multiplier`, or `epsilon` and `delta` for the whole study. All sites have the same weight,
    whatever their number of cases, and report 1 case. `adaptive` (hub only) lets the clip follow the updates.

    Not covered: scores of validation cases, which are withheld unless `scores: send`; who took part in which
    round, which is why sampling of sites is not counted as amplification.
    """

    equal_weights: ClassVar[bool] = True

    where: Literal["site", "hub"] = "hub"
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive is not None and self.where == "site":
            raise PrivacyError(
                "privacy 'client_dp': adaptive needs where: hub: a noised update reveals "
                "nothing about the others' norms"
            )

    @property
    def reveals_each_update(self) -> bool:  # type: ignore[override]
        """Whether the rule sees noised updates one by one; with central noise it sees their mean only."""
        return self.where == "site"

    def objections(self, study: Any) -> Iterator[str]:
        yield from super().objections(study)
        for name in study.rule.needs_scalars:
            if self.where == "hub" or name not in public_only({name: 0.0}, self.scores):
                yield (
                    f"rule.kind: '{kind_of(study.rule)}' weighs sites by '{name}', which client_dp "
                    "withholds; under it all sites have the same weight: take fedavg"
                )
        if self.where == "hub" and study.rule.max_sites is not None:
            yield (
                f"rule.kind: '{kind_of(study.rule)}' merges one site at a time, and central noise hides a "
                "site among the others of a round; take fedavg, or where: site"
            )

    def notes(self) -> tuple[str, ...]:
        trusted = (
            "the hub adds the noise and sees the updates"
            if self.where == "hub"
            else "noise is added in the hospital"
        )
        return (
            f"each hospital's updates are hidden by client_dp; {trusted}; all hospitals have the same weight",
            self.scores_note(),
        )

    def protect(self, update: Update, weights: Weights) -> Update:
        self.check_no_groups(update)
        alike = replace(update, examples=1, scalars=self.filter_scalars(update.scalars))
        if self.where == "site":
            apart = 2 * self.clip
            noisy = noised(clipped(update.delta, self.clip), self.multiplier * apart, apart, weights)
            return replace(alike, delta=noisy)
        if self.adaptive is not None:
            return alike  # the hub knows this round's clip
        short = clipped(update.delta, self.clip)
        return replace(alike, delta={name: short[name].to(weights[name].dtype) for name in short})

    def init(self, weights: Weights) -> PrivacyState:
        if self.adaptive is None:
            return {}
        return {CLIP: {"clip": torch.tensor(self.clip, dtype=torch.float64)}}

    def prepare_merge(
        self, updates: Sequence[Update], state: PrivacyState, weights: Weights
    ) -> tuple[Sequence[Update], PrivacyState]:
        """Return one update that is the noised mean of all, and the next clip.

        The noise is on the sum: `multiplier` times the clip, however many sites answered.
        """
        if self.where == "site":
            return updates, state
        ordered = sorted(updates, key=lambda update: update.site)
        clip = float(state[CLIP]["clip"]) if self.adaptive is not None else self.clip
        lengths = [norm(update.delta) for update in ordered]
        factors = [factor(length, clip) for length in lengths]
        deviation = self._deviation(len(ordered)) * clip
        mean: dict[str, Tensor] = {}
        for name in weights:
            total = torch.zeros(weights[name].shape, dtype=torch.float64)
            for update, scale in zip(ordered, factors, strict=True):
                total += scaled(update.delta[name], scale)
            noisy = add_gaussian(total, deviation, clip, len(ordered))
            mean[name] = (noisy / len(ordered)).to(weights[name].dtype)
        if self.adaptive is not None:
            state = {CLIP: {"clip": self._next(clip, lengths)}}
        return [Update(EVERYONE, ordered[0].round, mean, 1)], state

    def _deviation(self, sites: int) -> float:
        """Return z_delta, the noise on the sum in clips, given the noise on the count (theorem 1)."""
        if self.adaptive is None:
            return self.multiplier
        count_noise = self._count_noise(sites)
        remaining = self.multiplier**-2 - (2 * count_noise) ** -2
        if remaining <= 0:
            raise PrivacyError(
                f"client_dp: adaptive.count_noise: {count_noise:g} is too small for noise_multiplier "
                f"{self.multiplier:g}; it must be above {self.multiplier / 2:g}"
            )
        return float(remaining**-0.5)

    def _count_noise(self, sites: int) -> float:
        assert self.adaptive is not None
        given = self.adaptive.count_noise
        return max(sites / 20, self.multiplier) if given is None else given

    def _next(self, clip: float, lengths: Sequence[float]) -> Tensor:
        """Return C exp(-rate (b - quantile)), b the noised share of updates no longer than C."""
        assert self.adaptive is not None
        # Counted as +1/2 and -1/2, so that one site moves the sum by 1/2 and not by 1 (section 3).
        count = torch.tensor(sum(0.5 if length <= clip else -0.5 for length in lengths))
        noisy = add_gaussian(count, self._count_noise(len(lengths)), 0.5, len(lengths))
        share = 0.5 + float(noisy) / len(lengths)
        step = math.exp(-self.adaptive.rate * (share - self.adaptive.quantile))
        return torch.tensor(clip * step, dtype=torch.float64)
