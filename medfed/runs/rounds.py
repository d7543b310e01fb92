"""What became of each round: one record per site, one per round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SiteResult:
    """What became of one site in one round, for the report."""

    site: str
    status: str  # merged, refused, absent, reported
    reason: str = ""
    examples: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport:
    """One finished round: the model's number, what became of every site, seconds and bytes."""

    round: int
    results: tuple[SiteResult, ...]
    seconds: float
    bytes_down: int
