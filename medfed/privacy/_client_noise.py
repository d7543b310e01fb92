"""The settings of client-level privacy: a clip, and noise that is given or follows from a target epsilon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import msgspec

from medfed.errors import PrivacyError
from medfed.privacy._privacy import Positive, Privacy, Probability, Scores, not_covered, public_only
from medfed.privacy.accounting.accountant import Accountant, MechanismSteps, noise_for
from medfed.registry import kind_of
from medfed.wire.update import Update


class ClientNoise(Privacy, frozen=True):
    """Clips whole updates to `clip` and adds noise of `noise_multiplier`, or of `epsilon` and `delta`."""

    noise_multiplier: Positive | None = None
    epsilon: Positive | None = None
    delta: Probability = 1e-5
    clip: Positive = 1.0
    accountant: Accountant = "prv"
    scores: Scores = "withhold"

    packages: ClassVar[Mapping[str, str]] = {"opacus": "medfed[privacy]"}
    replaces_batch_norm: ClassVar[bool] = True
    scalars: ClassVar[tuple[str, ...]] = ("privacy/epsilon",)
    example: ClassVar[Mapping[str, Any]] = {"noise_multiplier": 0.5}

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.epsilon is None:
            raise PrivacyError(
                f"privacy '{kind_of(self)}': give noise_multiplier, or epsilon and delta; neither is set"
            )

    def objections(self, study: Any) -> Iterator[str]:
        for group in (*(study.train.local.sends if study.train.local else ()), *study.rule.needs_groups):
            yield (
                f"privacy.kind: {kind_of(self)} clips and noises the update only, and the group '{group}' "
                "would leave beside it; take another local method and rule, or privacy dp_sgd"
            )
            break

    def check_no_groups(self, update: Update) -> None:
        """Check that nothing leaves besides the noised update.

        Raises:
            PrivacyError: naming the groups that would.
        """
        if update.groups:
            raise PrivacyError(
                f"site '{update.site}', round {update.round}: the groups {', '.join(sorted(update.groups))} "
                f"would leave besides the noised update; {kind_of(self)} covers the update only"
            )

    def scores_note(self) -> str:
        """Return what a person should know of validation scores and of sampling."""
        return f"{not_covered(self.scores)}; sampling of sites is not secret and not counted"

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        return public_only(scalars, self.scores)

    def planned(self, rounds: int) -> Self:
        """Return the mechanism with the noise multiplier that keeps so many rounds within the target.

        Raises:
            PrivacyError: if no noise multiplier does.
        """
        if self.noise_multiplier is not None:
            return self
        assert self.epsilon is not None
        multiplier = noise_for(self.epsilon, self.delta, MechanismSteps(0.0, 1.0, rounds), self.accountant)
        return msgspec.structs.replace(self, noise_multiplier=multiplier)

    @property
    def multiplier(self) -> float:
        """The noise multiplier, of the sum of updates if the mechanism sums them, else of one update.

        Raises:
            PrivacyError: if it depends on the number of rounds and `planned` was not called.
        """
        if self.noise_multiplier is None:
            raise PrivacyError(
                f"{kind_of(self)}: the noise of a target epsilon depends on the rounds; use planned(rounds)"
            )
        return self.noise_multiplier

    def round_cost(self) -> MechanismSteps:
        return MechanismSteps(self.multiplier)
