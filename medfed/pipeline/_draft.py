"""What the drafts of images and of tables have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

# The seed of a drafted study. Its counts are of the splits that a simulation with this seed makes.
DRAFT_SEED = 0


@dataclass(frozen=True)
class Draft:
    """A study file's text, a summary of each hospital's folder, and what a person should check."""

    text: str
    summaries: tuple[str, ...]
    warnings: tuple[str, ...]


def yaml_inline(values: Sequence[Any]) -> str:
    """Return a sequence as a YAML list on one line."""
    text: str = yaml.safe_dump(list(values), default_flow_style=True, width=1000, allow_unicode=True)
    return text.strip()
