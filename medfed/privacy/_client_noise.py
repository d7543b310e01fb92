"""The settings of client-level privacy: a clip, and noise that is given or follows from a target epsilon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import msgspec

from medfed.errors import PrivacyError
from medfed.privacy._privacy import Positive, Privacy, Probability
from medfed.privacy.accounting.accountant import Accountant, MechanismSteps, noise_for
from medfed.registry import kind_of


class ClientNoise(Privacy, frozen=True):
    """Clips whole updates to `clip` and adds noise of `noise_multiplier`, or of `epsilon` and `delta`."""

    noise_multiplier: Positive | None = None
    epsilon: Positive | None = None
    delta: Probability = 1e-5
    clip: Positive = 1.0
    accountant: Accountant = "prv"
    scores: Literal["withhold", "send"] = "withhold"

    replaces_batch_norm: ClassVar[bool] = True
    scalars: ClassVar[tuple[str, ...]] = ("privacy/epsilon",)
    example: ClassVar[Mapping[str, Any]] = {"noise_multiplier": 0.5}

    def __post_init__(self) -> None:
        if self.noise_multiplier is None and self.epsilon is None:
            raise PrivacyError(
                f"privacy '{kind_of(self)}': give noise_multiplier, or epsilon and delta; neither is set"
            )

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
