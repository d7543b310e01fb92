"""Client-level differential privacy under a secure sum: each site adds a share of the noise, nobody
sees less than all.

Kairouz, Liu, Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation, ICML 2021, arXiv:2102.06387. A site clips its update to length `clip`, adds Gaussian noise of
deviation z clip / sqrt(least - colluding), z the noise multiplier, rounds to the fixed point and masks
(`secure_sum.py`); the hub learns the noised sum. Any `least - colluding` shares together are noise of
deviation z clip, that of a central Gaussian mechanism, and as one the accountant counts it, a step a round.

What is guaranteed, and when sites drop out. A sum is over at least `least` sites, or it is not opened: the
sites themselves see to that before they give the shares that unmask it, so a hub that lies can't have a
smaller one. Of those sites `colluding` may subtract their own noise, and what is left is the promised noise
or more. Each site knows its own share, so already another hospital that looks at the merged model needs
`colluding: 1`, the default: it holds against the hub, against each hospital, and against the hub with one of
them. If more sites answer than `least`, the sum has more noise than was counted, by sqrt(answered / (least -
colluding)); epsilon is then an upper bound. If fewer do, the round fails, nothing is opened, and the charge
that was written down for it stands. A round that is tried again sends the very same noised numbers, so that
two sums of one round are no second look.

Neighbours differ by one site's update being there or zeros in its place: who is in a sum is known. Sites
weigh the same, because the sum's sensitivity is the clip only then.

Whether the rounding matters. Noised sites that are rounded do not sum to the rounded noised sum, so the
central bound does not simply carry over. Here the clipped update and the noise are each rounded to one grid
and added there without error: what is opened is a whole sum, and a whole noise that does not depend on the
data. The paper draws discrete Gaussians (Canonne, Kamath, Steinke, NeurIPS 2020, arXiv:2004.00010) and
bounds how far their sum is from one; this rounds continuous ones. By Poisson's summation a rounded Gaussian
of s steps' deviation is, up to e^(-2 pi^2 s^2), a Gaussian plus an independent uniform number within half a
step, seen on the grid; n of them differ from a central Gaussian seen on the grid by more noise, of n / 12
steps^2 against n s^2. A share has at least MIN_STEPS = 1024 steps, with which both are far below the
accountant's own error; a site refuses to send with fewer. The clip is shortened by sqrt(numbers) / 2 steps,
so that rounding can't carry an update over it. Further departures: no rotation and no wrapping modulo (the
fixed point holds the largest noise that the generator can draw, so neither a clip of single numbers nor
their overflow is counted).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from medfed.errors import PrivacyError
from medfed.privacy._client_noise import ClientNoise
from medfed.privacy._clipping import factor, scaled, share
from medfed.privacy._masks import Bits
from medfed.privacy._noise import LARGEST, gaussian
from medfed.privacy._privacy import Hearing, Positive, Shield, public_only
from medfed.privacy._secagg import Settings, needed
from medfed.privacy._secagg_client import GROUP, shields
from medfed.privacy._secagg_server import convened
from medfed.registry import kind_of
from medfed.wire.messages import HubLetters, SiteLetters
from medfed.wire.update import Update
from medfed.wire.weights import Weights, norm

# For how many sites the grid leaves room. It must not depend on who is there: a round that is tried again
# with others sends the same numbers.
MOST_SITES = 1024

# The least steps of the grid in a share's deviation, and the largest part of the clip that rounding may cost.
MIN_STEPS = 1024
MOST_ROUNDING = 0.1


class DistributedDP(ClientNoise, tag="distributed_dp", frozen=True):
    """Noised secure sum: the hub learns only a sum of clipped updates, with noise that no one party knows.

    Protects each hospital's whole contribution, to (`epsilon`, `delta`) over the whole study, against the
    hub, other hospitals and whoever gets the model, without trusting the hub with bare updates (client_dp at
    the hub does) and with far less noise than where each update is hidden by itself (client_dp at the sites).

    Give `noise_multiplier`, or `epsilon` and `delta`. `least` sites must be in a sum, and together they have
    the whole noise even if `colluding` of them give theirs away; more sites make more noise, so set it to as
    many as surely answer. `threshold`, `bits`, `neighbours` and `patience_s` are those of secure_sum; 32 bits
    are half the bytes.

    Not covered: scores of validation cases, withheld unless `scores: send`; who took part, which is why
    sampling of sites is not counted; sites beyond `colluding` that give the hub their noise.
    """

    least: Annotated[int, Meta(ge=2, le=MOST_SITES)] = 3
    colluding: Annotated[int, Meta(ge=0)] = 1
    threshold: Annotated[float, Meta(gt=0.5, le=1)] = 0.67
    bits: Bits = 32
    neighbours: Annotated[int, Meta(ge=4)] = 30
    patience_s: Positive = 300.0

    reveals_each_update: ClassVar[bool] = False
    sends: ClassVar[tuple[str, ...]] = (GROUP,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colluding >= self.least:
            raise PrivacyError(
                f"privacy 'distributed_dp': of least: {self.least} sites colluding: {self.colluding} may give their noise "
                f"away, and nobody is left to hide behind; set colluding below least"
            )

    def objections(self, study: Any) -> Iterator[str]:
        groups = (
            *(study.train.local.sends if study.train.local is not None else ()),
            *study.rule.needs_groups,
        )
        if groups:
            yield (
                f"privacy.kind: distributed_dp clips and noises the update only, and the group '{groups[0]}' would leave "
                f"beside it; take another local method and rule, or privacy dp_sgd"
            )
        if study.rule.max_sites is not None:
            yield (
                f"rule.kind: '{kind_of(study.rule)}' merges one site at a time, and distributed_dp hides a site in the sum "
                f"of a round; take fedavg"
            )
        asked = max(1, math.ceil(study.sampling.fraction * len(study.sites) - 1e-9))
        if asked > MOST_SITES:
            yield f"privacy.kind: distributed_dp sums at most {MOST_SITES} sites a round, found {asked}"
        if (fewest := needed(self.threshold, asked)) > self.least:
            wasted = math.sqrt((fewest - self.colluding) / (self.least - self.colluding))
            yield (
                f"privacy.least: {self.least}, but of {asked} sites a round {fewest} must go on anyway (privacy.threshold): "
                f"the noise would be {wasted:.1f} times what it need be; set it to {fewest}, and sampling.minimum too"
            )

    def fewest_sites(self) -> int:
        return self.least

    def notes(self) -> tuple[str, ...]:
        told = "are sent as they are" if self.scores == "send" else "stay in the hospitals (privacy.scores)"
        return (
            f"each hospital's updates are hidden by distributed_dp: every hospital adds a share of the noise, and the hub "
            f"sees a sum of at least {self.least} only; all hospitals weigh the same",
            f"the noise is enough while at most {self.colluding} of a round's hospitals tell theirs; a sum of fewer than "
            f"{self.least} is never opened",
            f"validation scores are not covered by epsilon and {told}; sampling of sites is not secret and not counted",
        )

    @property
    def deviation(self) -> float:
        """The deviation of one site's share of the noise."""
        return share(self.clip, self.multiplier, self.least - self.colluding)

    @property
    def grid(self) -> float:
        """Steps to a unit, a power of two: coarser than any round's fixed point, which
        then adds without error.
        """
        return self._settings.fixed_point(MOST_SITES).scale

    def tell(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        # None of training: with the number of steps the hub could tell the cases.
        return {
            name: value
            for name, value in public_only(scalars, self.scores).items()
            if not name.startswith("train/")
        }

    def meet(self, letters: SiteLetters) -> Iterator[Shield]:
        kept: dict[str, Tensor] = {}
        for shield in shields(self._settings, letters):
            yield _Noised(self, shield, kept)

    def convene(self, letters: HubLetters, deadline_s: float | None) -> Hearing:
        return convened(self._settings, letters, deadline_s)

    def noised(self, update: Update) -> dict[str, Tensor]:
        """Return the update clipped and with this site's share of the noise, float64, each number a
        multiple of a step.

        Raises:
            PrivacyError: if the grid is too coarse for the noise or for so large a model.
        """
        who = f"update of site '{update.site}' for round {update.round}: distributed_dp"
        grid, deviation = self.grid, self.deviation
        finer = "; set privacy.bits to 64" if self.bits == 32 else ""
        if deviation * grid < MIN_STEPS:
            raise PrivacyError(
                f"{who}: its noise of deviation {deviation:.3g} is {deviation * grid:.0f} steps of the fixed point, fewer than "
                f"the {MIN_STEPS} from which on rounding does not matter{finer}, or a larger noise_multiplier"
            )
        numbers = sum(tensor.numel() for tensor in update.delta.values())
        rounding = math.sqrt(numbers) / (2 * grid)
        if rounding > MOST_ROUNDING * self.clip:
            raise PrivacyError(
                f"{who}: rounding the model's {numbers} numbers moves an update by up to {rounding:.3g}, more than a tenth "
                f"of the clip {self.clip:g}{finer or '; take a larger clip or less noise'}"
            )
        scale = factor(norm(update.delta), self.clip - rounding)

        def both(tensor: Tensor) -> Tensor:
            short = _to_steps(scaled(tensor, scale), grid)
            return short.add_(_to_steps(gaussian(tensor.shape, deviation), grid)).div_(grid)

        # One tensor after another: the model is held once more, and not three times.
        return {name: both(update.delta[name]) for name in update.delta}

    @property
    def _settings(self) -> Settings:
        # The largest number that may leave: a clipped one and the most noise that the generator can draw.
        limit = self.clip + LARGEST * self.deviation
        return Settings(self.threshold, self.least, self.bits, limit, 1, self.neighbours, self.patience_s)


@dataclass(frozen=True)
class _Noised:
    """One attempt at a round: what was noised in the first is masked anew."""

    privacy: DistributedDP
    shield: Shield
    kept: dict[str, Tensor] = field(default_factory=dict)

    def protect(self, update: Update, weights: Weights) -> Update:
        if update.groups:
            raise PrivacyError(
                f"site '{update.site}', round {update.round}: the groups {', '.join(sorted(update.groups))} would leave "
                f"beside the noised update; distributed_dp covers the update only"
            )
        if not self.kept:
            self.kept.update(self.privacy.noised(update))
        return self.shield.protect(replace(update, delta=self.kept, examples=1), weights)


def _to_steps(tensor: Tensor, grid: float) -> Tensor:
    """Make a tensor whole numbers of steps, in place; below 2^53, so that adding two of them is exact."""
    return tensor.mul_(grid).round_()
