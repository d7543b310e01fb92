"""The kinds of issue that a preflight knows (issues.toml), and the records in which it reports them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Finding(NamedTuple):
    """One issue: a code of ISSUE_TYPES, the printable name of the case ('' for the site), the detail."""

    code: str
    case: str
    detail: str


@dataclass(frozen=True, slots=True)
class IssueType:
    """How bad a kind of issue is, what it means and what to do about it."""

    severity: Severity
    title: str
    means: str
    remedy: str


ISSUE_TYPES = msgspec.toml.decode(
    Path(__file__).with_name("issues.toml").read_bytes(), type=dict[str, IssueType]
)


@dataclass(frozen=True, slots=True)
class Problem:
    """All findings of one kind, as (printable name of the case, detail)."""

    code: str
    severity: Severity
    title: str
    means: str
    remedy: str
    cases: tuple[tuple[str, str], ...]


def group_findings(findings: Iterable[Finding]) -> tuple[Problem, ...]:
    """Return one problem per code, the worst and the most frequent first; repeated findings count once."""
    grouped: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for code, name, detail in findings:
        if (name, detail) not in grouped[code]:
            grouped[code].append((name, detail))
    problems = [
        Problem(code, **asdict(ISSUE_TYPES[code]), cases=tuple(cases)) for code, cases in grouped.items()
    ]
    return tuple(sorted(problems, key=lambda p: (SEVERITIES.index(p.severity), -len(p.cases), p.code)))
