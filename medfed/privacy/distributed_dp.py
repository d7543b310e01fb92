"""Client-level differential privacy under a secure sum: each site adds a share of the noise.

Kairouz, Liu, Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation, ICML 2021, arXiv:2102.06387. A site clips its update to length `clip`, adds Gaussian noise
of deviation z clip / sqrt(min_sites - colluding), z the noise multiplier, rounds to the fixed point and
masks (`secure_sum.py`); the hub learns the noised sum. Any `min_sites - colluding` shares together are
noise of deviation z clip, that of a central Gaussian mechanism, and the accountant counts it as one,
with one step per round.

What is guaranteed, and when sites drop out. A sum is over at least `min_sites` sites, or it is not opened:
the sites themselves check that before they give the shares that unmask it, so a lying hub cannot obtain a
smaller one (`secure_sum.py` says why no view of who is there helps it). Of those sites `colluding` may
subtract their own noise, and what remains is the promised noise or more. Each site knows its own share, so
protection against another hospital that has the merged model needs `colluding: 1`, the default: it holds
against the hub, against each hospital, and against the hub with one of them. If more sites answer than
`min_sites`, the sum has more noise than was counted, by sqrt(answered / (min_sites - colluding)); epsilon is
then an upper bound. If fewer do, the round fails, nothing is opened, and its recorded cost stands. A round
that is repeated sends exactly the same noised numbers, so that a second sum of the same round reveals nothing
new.

Neighbours differ by one site's update being present or replaced by zeros: who is in a sum is known. Sites
have the same weight, because only then is the sum's sensitivity the clip.

Whether the rounding matters. Rounded noised updates do not sum to the rounded noised sum, so the central
bound does not simply carry over. Here the clipped update and the noise are each rounded to one grid
and added there without error: what is opened is a whole sum, and a whole noise that does not depend on the
data. The paper draws discrete Gaussians (Canonne, Kamath, Steinke, NeurIPS 2020, arXiv:2004.00010) and
bounds how far their sum is from one; this rounds continuous ones. By Poisson's summation a rounded Gaussian
of s steps' deviation is, up to e^(-2 pi^2 s^2), a Gaussian plus an independent uniform number within half a
step, seen on the grid; n of them differ from a central Gaussian seen on the grid by more noise, of n / 12
steps^2 against n s^2. A share has at least MIN_STEPS = 1024 steps, with which both are far below the
accountant's own error; a site refuses to send with fewer. The clip is shortened by sqrt(numbers) / 2 steps,
so that rounding cannot carry an update over it. Further departures: no rotation and no wrapping modulo (the
fixed point holds the largest noise that the generator can draw, so neither a clip of single numbers nor
their overflow is counted).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta
from torch import Tensor

from medfed.errors import PrivacyError
from medfed.privacy._client_noise import ClientNoise
from medfed.privacy._clipping import factor, scaled, share
from medfed.privacy._masks import Bits
from medfed.privacy._noise import MAX_DEVIATIONS, gaussian
from medfed.privacy._privacy import Positive, RoundSession, UpdateProtector
from medfed.privacy._secagg import GROUP, Settings, required_sites
from medfed.privacy._secagg_client import protectors
from medfed.privacy._secagg_server import open_session
from medfed.registry import kind_of
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import Update
from medfed.wire.weights import Weights, norm

# The number of sites for which the grid has headroom. It must not depend on who is there: a round that is
# repeated with other sites sends the same numbers.
MAX_SITES = 1024

# The smallest deviation of a share in grid steps, and the largest share of the clip that rounding may cost.
MIN_STEPS = 1024
MAX_ROUNDING = 0.1


class DistributedDP(ClientNoise, tag="distributed_dp", frozen=True):
    """Noised secure sum: the hub learns only a sum of clipped updates plus noise that no single party knows.

    Protects each hospital's whole contribution, to (`epsilon`, `delta`) over the whole study, against the
    hub, other hospitals and whoever gets the model, without trusting the hub with bare updates (as
    client_dp at the hub does) and with far less noise than if each update were noised by itself
    (client_dp at the sites).

    Give `noise_multiplier`, or `epsilon` and `delta`. `min_sites` sites must be in a sum, and together they
    add the whole noise even if `colluding` of them reveal theirs; more sites add more noise, so set it to the
    number that is sure to answer. `threshold`, `bits`, `neighbours` and `patience_s` are those of secure_sum;
    32 bits are half the bytes.

    Not covered: scores of validation cases, withheld unless `scores: send`; who took part, which is why
    sampling of sites is not counted; sites beyond `colluding` that give the hub their noise.
    """

    min_sites: Annotated[int, Meta(ge=2, le=MAX_SITES)] = 3
    colluding: Annotated[int, Meta(ge=0)] = 1
    threshold: Annotated[float, Meta(gt=0.5, le=1)] = 0.67
    bits: Bits = 32
    neighbours: Annotated[int, Meta(ge=4)] = 30
    patience_s: Positive = 300.0

    reveals_each_update: ClassVar[bool] = False
    shows_examples: ClassVar[Literal["sent", "summed", "alike"]] = "alike"
    sends: ClassVar[tuple[str, ...]] = (GROUP,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colluding >= self.min_sites:
            raise PrivacyError(
                f"privacy 'distributed_dp': of min_sites: {self.min_sites} sites colluding: {self.colluding} "
                "may reveal their noise, and none would remain; set colluding below min_sites"
            )

    def objections(self, study: Any) -> Iterator[str]:
        yield from super().objections(study)
        if study.rule.max_sites is not None:
            yield (
                f"rule.kind: '{kind_of(study.rule)}' merges one site at a time, and distributed_dp hides a "
                "site in the sum of a round; take fedavg"
            )
        asked = max(1, math.ceil(study.sampling.fraction * len(study.sites) - 1e-9))
        if asked > MAX_SITES:
            yield f"privacy.kind: distributed_dp sums at most {MAX_SITES} sites a round, found {asked}"
        if (fewest := required_sites(self.threshold, asked, self.colluding)) > self.min_sites:
            wasted = math.sqrt((fewest - self.colluding) / (self.min_sites - self.colluding))
            yield (
                f"privacy.min_sites: {self.min_sites}, but of {asked} sites a round {fewest} must stay "
                f"anyway (privacy.threshold): the noise would be {wasted:.1f} times what is needed; set it "
                f"to {fewest}, and sampling.minimum too"
            )

    def notes(self) -> tuple[str, ...]:
        return (
            "each hospital's updates are hidden by distributed_dp: every hospital adds a share of the noise, "
            f"and the hub sees only a sum of at least {self.min_sites}; all hospitals have the same weight",
            f"the noise suffices, and no single update is read by a hub that lies, while at most "
            f"{self.colluding} of a round's hospitals help it; a sum of fewer than {self.min_sites} is never "
            "opened",
            self.scores_note(),
        )

    @property
    def deviation(self) -> float:
        """The deviation of one site's share of the noise."""
        return share(self.clip, self.multiplier, self.min_sites - self.colluding)

    @property
    def grid(self) -> float:
        """Steps per unit, a power of two, coarser than any round's fixed point, so that sums are exact."""
        return self._settings.fixed_point(MAX_SITES).scale

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        # No scalars of training: from the number of steps the hub could infer the number of cases.
        public = super().filter_scalars(scalars)
        return {name: value for name, value in public.items() if not name.startswith("train/")}

    def protectors(self, channel: SiteChannel) -> Iterator[UpdateProtector]:
        noised: dict[str, Tensor] = {}
        for protector in protectors(self._settings, channel):
            yield _NoisedUpdate(self, protector, noised)

    @property
    def bytes_per_number(self) -> float:
        return self.bits / 8

    def required(self, sites: int) -> int:
        return max(self.min_sites, required_sites(self.threshold, sites, self.colluding))

    def open_session(self, channel: HubChannel, deadline_s: float | None) -> RoundSession:
        return open_session(self._settings, channel, deadline_s)

    def noised(self, update: Update) -> dict[str, Tensor]:
        """Return the clipped update plus this site's share of the noise, float64, on the grid.

        Raises:
            PrivacyError: if the grid is too coarse for the noise or for so large a model.
        """
        who = f"{update}: distributed_dp"
        grid, deviation = self.grid, self.deviation
        finer = "; set privacy.bits to 64" if self.bits == 32 else ""
        if deviation * grid < MIN_STEPS:
            raise PrivacyError(
                f"{who}: its noise of deviation {deviation:.3g} is {deviation * grid:.0f} steps of the fixed "
                f"point, fewer than the {MIN_STEPS} that make rounding negligible{finer}, or use a larger "
                "noise_multiplier"
            )
        numbers = sum(tensor.numel() for tensor in update.delta.values())
        rounding = math.sqrt(numbers) / (2 * grid)
        if rounding > MAX_ROUNDING * self.clip:
            raise PrivacyError(
                f"{who}: rounding the model's {numbers} numbers moves an update by up to {rounding:.3g}, "
                f"more than a tenth of the clip {self.clip:g}{finer or '; take a larger clip or less noise'}"
            )
        scale = factor(norm(update.delta), self.clip - rounding)

        def both(tensor: Tensor) -> Tensor:
            short = _to_steps(scaled(tensor, scale), grid)
            return short.add_(_to_steps(gaussian(tensor.shape, deviation), grid)).div_(grid)

        # One tensor after another, so that the model is held once more instead of three times.
        return {name: both(update.delta[name]) for name in update.delta}

    @property
    def _settings(self) -> Settings:
        # The largest number that may leave: a clipped one plus the largest noise that the generator can draw.
        limit = self.clip + MAX_DEVIATIONS * self.deviation
        return Settings(
            self.threshold,
            self.min_sites,
            self.bits,
            limit,
            1,
            self.neighbours,
            self.patience_s,
            self.colluding,
        )


@dataclass(frozen=True)
class _NoisedUpdate:
    """One attempt at a round: the update noised in the first attempt, under new masks."""

    privacy: DistributedDP
    protector: UpdateProtector
    noised: dict[str, Tensor] = field(default_factory=dict)

    def protect(self, update: Update, weights: Weights) -> Update:
        self.privacy.check_no_groups(update)
        if not self.noised:
            self.noised.update(self.privacy.noised(update))
        return self.protector.protect(replace(update, delta=self.noised, examples=1), weights)


def _to_steps(tensor: Tensor, grid: float) -> Tensor:
    """Round a tensor to whole grid steps, in place; below 2^53, so that adding two of them is exact."""
    return tensor.mul_(grid).round_()
