"""What a leakage audit found, as records, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
from torch import Tensor

from medfed.privacy.attacks.membership import MIN_CASES, advantage
from medfed.wire.templates import render


@dataclass(frozen=True)
class AttackBudget:
    """How hard to try: steps of gradient matching, number of shadow models and seconds to train them."""

    steps: int = 300
    shadows: int = 16
    budget_s: float = 300.0
    cases: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Inversion:
    """How much of the cases in a one-step update was reconstructed, from 0 to 1: the best and the mean case.

    `chance` is the score of other patients of the hospital, offered as guesses.
    """

    privacy: str
    cases: int
    best: float
    mean: float
    chance: float


@dataclass(frozen=True)
class Membership:
    """How often an attacker tells a case that was trained on from one that was not; 0.5 is guessing.

    found_at_0_1_percent, found_at_1_percent: the share of members that the stronger attack finds while it
    takes at most so many of the others for members.
    """

    privacy: str
    models: int
    cases: int
    by_loss: float
    by_ratio: float | None
    found_at_0_1_percent: float | None = None
    found_at_1_percent: float | None = None

    @property
    def is_reliable(self) -> bool:
        """Whether there are enough cases to rely on the result, and to let it decide the gate."""
        return self.cases >= 2 * MIN_CASES


@dataclass(frozen=True)
class Findings:
    """All results of an audit. `pictures` holds the true cases, their mean and the reconstructions.

    `digest` is that of the study, so that nobody takes the figures for another study's.
    """

    study: str
    site: str
    needs: str
    inverted: tuple[Inversion, ...]
    members: tuple[Membership, ...]
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    digest: str = ""

    @property
    def worst(self) -> float:
        """The most that leaked under the study's own privacy, from 0 to 1; the gate compares this number."""
        own = self.inverted[-1].privacy
        attacks = [one.best for one in self.inverted if one.privacy == own]
        attacks += [
            advantage(max(one.by_loss, one.by_ratio or 0.5))
            for one in self.members
            if one.privacy == own and one.is_reliable
        ]
        return max(attacks)


def describe(findings: Findings) -> str:
    """Return the findings as a page of plain text."""
    is_image = findings.needs not in ("table", "survival")
    return render(
        Path(__file__).with_name("findings.txt.jinja"), findings=findings, is_image=is_image
    ).removesuffix("\n")


def to_json(findings: Findings) -> bytes:
    """Return the figures as JSON, without the pictures."""
    plain = asdict(replace(findings, pictures={})) | {"worst": findings.worst}
    del plain["pictures"]
    return msgspec.json.format(msgspec.json.encode(plain), indent=2)
