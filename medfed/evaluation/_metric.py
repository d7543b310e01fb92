"""What a metric is called, measured in, and which direction is better: the tables that reports are labelled
from."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A metric's label, unit, better direction ("zero" and "one": nearer is better) and range."""

    label: str
    unit: str = ""
    better: Literal["higher", "lower", "zero", "one", "none"] = "higher"
    lowest: float | None = 0.0
    highest: float | None = 1.0
    says: str = ""
