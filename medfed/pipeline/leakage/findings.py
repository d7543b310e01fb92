"""What a leakage audit found, as records, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import msgspec
from torch import Tensor

from medfed.privacy.attacks.membership import MIN_CASES, advantage


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
    """How often an attacker tells a case that was trained on from one that was not; 0.5 is guessing."""

    privacy: str
    models: int
    cases: int
    by_loss: float
    by_ratio: float | None

    @property
    def is_reliable(self) -> bool:
        """Whether there are enough cases to rely on the result, and to let it decide the gate."""
        return self.cases >= 2 * MIN_CASES


@dataclass(frozen=True)
class Findings:
    """All results of an audit. `pictures` holds the true cases, their mean and the reconstructions."""

    study: str
    site: str
    needs: str
    inverted: tuple[Inversion, ...]
    members: tuple[Membership, ...]
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

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
    lines = [f"Leakage audit of study '{findings.study}' at hospital '{findings.site}'", ""]
    lines += [*_describe_inversion(findings), *_describe_membership(findings)]
    lines += ["", *findings.notes] if findings.notes else []
    lines += [
        "",
        f"The most that was reconstructed under this study's protection: {findings.worst:.2f} of 1.",
        "The attacked step is the worst case: an update of a single step, and an attacker who knows the "
        "right\nanswers. An update of many steps over many cases is harder to invert. That these attacks "
        "found little\ndoes not mean that no attack can find more.",
    ]
    return "\n".join(lines)


def _describe_inversion(findings: Findings) -> list[str]:
    is_image = findings.needs not in ("table", "survival")
    what, free = ("image", ", apart from brightness and contrast") if is_image else ("row", "")
    lines = [
        f"How much of a patient's {what} could be reconstructed from an update of a single training step?",
        f"(100 %: the very same{free}; 0 %: no more than the average of this hospital's patients)",
    ]
    for one in findings.inverted:
        lines.append(
            f"  {_protection(one.privacy)}, {one.cases} case{'s' * (one.cases > 1)} in the step: "
            f"{one.best:.0%} of the best reconstructed case, {one.mean:.0%} on average (guessing with other "
            f"patients: {one.chance:.0%})"
        )
    if is_image:
        lines.append(
            "Look at the figure too: a part of a patient that is visible in noise is a small share of all "
            "voxels."
        )
    return lines


def _describe_membership(findings: Findings) -> list[str]:
    if not findings.members:
        return []
    lines = [
        "",
        "Could someone with a patient's data tell from the trained model whether that patient was in "
        "training?",
        "(100 %: always; 50 %: by tossing a coin)",
    ]
    for one in findings.members:
        ratio = (
            "" if one.by_ratio is None else f", {one.by_ratio:.0%} by comparison with models trained without"
        )
        few = "" if one.is_reliable else f"; only {one.cases} cases, too few to rely on, and not in the gate"
        lines.append(
            f"  {_protection(one.privacy)}: {one.by_loss:.0%} right by the model's error alone{ratio} "
            f"({one.models} models{few})"
        )
    return lines


def _protection(privacy: str) -> str:
    return "without protection" if privacy == "none" else f"with {privacy}"


def to_json(findings: Findings) -> bytes:
    """Return the figures as JSON, without the pictures."""
    plain = asdict(replace(findings, pictures={})) | {"worst": findings.worst}
    del plain["pictures"]
    return msgspec.json.format(msgspec.json.encode(plain), indent=2)
