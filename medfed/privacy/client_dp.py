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
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from medfed.errors import PrivacyError, UpdateError
from medfed.privacy._client_noise import ClientNoise
from medfed.privacy._clipping import clipped, factor, noised, scaled
from medfed.privacy._noise import add_gaussian
from medfed.privacy._privacy import (
    GROUP,
    PUBLIC,
    PlainSession,
    Positive,
    PrivacyState,
    RoundSession,
    public_only,
)
from medfed.registry import kind_of
from medfed.wire.messages import HubChannel
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Weights, norm

# The round's clip, which the hub publishes beside the model where it adapts.
CLIP = f"{PUBLIC}clip"

# Where the clip adapts: the clip to which a site shortened its update, and whether that was as short already.
CLIPPED = f"{GROUP}clipped"

# The site name of the update that stands for all sites of a round.
EVERYONE = "all-sites"


class Adaptive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A clip that follows the updates' norms: after each round it moves towards their `quantile`.

    The hub publishes each round's clip; a site shortens its update to it before it leaves, and says with it
    whether it was as short already.

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
    shows_examples: ClassVar[Literal["sent", "summed", "alike"]] = "alike"

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
    def broadcast(self) -> tuple[str, ...]:  # type: ignore[override]
        """The groups of the hub's state that it publishes: the clip, where it changes."""
        return () if self.adaptive is None else (CLIP,)

    @property
    def sends(self) -> tuple[str, ...]:  # type: ignore[override]
        """The groups that leave with an update: how it was clipped, where the clip changes."""
        return () if self.adaptive is None else (CLIPPED,)

    @property
    def follows_model(self) -> bool:
        return self.adaptive is not None

    def for_round(self, received: GlobalModel) -> Self:
        if self.adaptive is None:
            return self
        clip = float(received.groups.get(CLIP, {}).get("clip", torch.tensor(math.nan)))
        if not (math.isfinite(clip) and clip > 0):
            raise PrivacyError(
                f"client_dp: the hub published no clip with the model of round {received.round}, which "
                "adaptive needs; does the hub run the same study and version of medfed?"
            )
        return msgspec.structs.replace(self, clip=clip)

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
        if self.adaptive is not None and study.rule.asynchronous:
            yield (
                f"rule.kind: '{kind_of(study.rule)}' merges updates of older rounds, which had another clip; "
                "take fedavg, or omit privacy.adaptive"
            )
        if self.where == "hub" and study.rule.max_sites is not None:
            yield (
                f"rule.kind: '{kind_of(study.rule)}' merges one site at a time, and central noise hides a "
                "site among the others of a round; take fedavg, or where: site"
            )

    def notes(self) -> tuple[str, ...]:
        trusted = (
            "the hub adds the noise and sees the clipped updates"
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
        short = clipped(update.delta, self.clip)
        sent = replace(alike, delta={name: short[name].to(weights[name].dtype) for name in short})
        if self.adaptive is None:
            return sent
        within = float(norm(update.delta) <= self.clip)
        return replace(sent, groups={CLIPPED: {"clip": _number(self.clip), "within": _number(within)}})

    def open_session(self, channel: HubChannel, deadline_s: float | None) -> RoundSession:
        privacy = self if channel.model is None else self.for_round(channel.model)
        return PlainSession(privacy, channel.sites, deadline_s)

    def admit(self, update: Update, weights: Weights) -> Update:
        admitted = super().admit(update, weights)
        if self.adaptive is not None and not update.evaluation_only:
            _check_clipped(update, self.clip)
        return admitted

    def init(self, weights: Weights) -> PrivacyState:
        if self.adaptive is None:
            return {}
        return {CLIP: {"clip": _number(self.clip)}}

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
            within = [float(update.groups[CLIPPED]["within"]) == 1.0 for update in ordered]
            state = {CLIP: {"clip": self._next(clip, within)}}
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

    def _next(self, clip: float, within: Sequence[bool]) -> Tensor:
        """Return C exp(-rate (b - quantile)), b the noised share of updates that were no longer than C."""
        assert self.adaptive is not None
        # Counted as +1/2 and -1/2, so that one site moves the sum by 1/2 and not by 1 (section 3).
        count = torch.tensor(sum(0.5 if short else -0.5 for short in within))
        noisy = add_gaussian(count, self._count_noise(len(within)), 0.5, len(within))
        share = 0.5 + float(noisy) / len(within)
        step = math.exp(-self.adaptive.rate * (share - self.adaptive.quantile))
        return _number(clip * step)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _check_clipped(update: Update, clip: float) -> None:
    """Check that a site clipped its update to this round's clip, and said yes or no to whether it was short.

    Raises:
        UpdateError: naming site and round.
    """
    numbers = update.groups.get(CLIPPED, {})
    if set(numbers) != {"clip", "within"} or any(tensor.numel() != 1 for tensor in numbers.values()):
        raise UpdateError(f"{update}: does not say how it was clipped (group '{CLIPPED}'), as adaptive needs")
    if (found := float(numbers["clip"])) != clip:
        raise UpdateError(f"{update}: was clipped to {found:g}, this round's clip is {clip:g}")
    if float(numbers["within"]) not in (0.0, 1.0):
        raise UpdateError(f"{update}: '{CLIPPED}' holds {float(numbers['within']):g}, expected 0 or 1")
