"""Numbers, models, hospitals, times and rounds as a reader sees them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from medfed.evaluation.intervals import TOO_NARROW
from medfed.evaluation.metrics import Metric, metric_of
from medfed.evaluation.rows import ALL_SITES, FEDERATED, POOLED, SITE_MEAN, UNTRAINED, Row
from medfed.wire.untrusted_text import for_html

# An interval narrower than this would be written as a single number with two decimals.
NARROW = 0.05
# What marks an interval that is likely too narrow.
DAGGER = "†"
# So many columns of hospitals fit beside each other on a sheet of paper.
MAX_COLUMNS = 7


def number(value: float | None, metric: Metric | None = None, sign: bool = False, fine: bool = False) -> str:
    """Return a value as text, with a number of decimals that fits the metric's range.

    Two decimals where the range is 0 to 1 (three for a difference, or where `fine`), else about three digits.
    """
    if value is None:
        return "–"
    if metric is None or (metric.lowest in (0.0, -1.0) and metric.highest == 1.0):
        digits = 2 if metric is not None and not sign and not fine else 3
    else:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) >= 1e-9 else 1
        digits = min(digits, 2)
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if value == 0 and digits == 1:
        text = "0"
    if float(text) == 0:
        # A rounded minus zero would look like a mistake.
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def interval(row: Row, sign: bool = False, fine: bool = False) -> str:
    """Return the interval of a row as text, or an empty string where it has none."""
    if row.low is None or row.high is None:
        return ""
    metric = metric_of(row.metric)
    return f"{number(row.low, metric, sign, fine)} to {number(row.high, metric, sign, fine)}"


def column_slices(columns: Sequence[object]) -> list[slice]:
    """Return the columns of each of the tables that a wide one is given in, as even as can be."""
    tables = max(1, math.ceil(len(columns) / MAX_COLUMNS))
    bounds = [round(index * len(columns) / tables) for index in range(tables + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(bounds)]


def is_small_sample(row: Row | None) -> bool:
    """Return whether a row's interval is of so few patients that it is likely too narrow."""
    return row is not None and row.low is not None and TOO_NARROW in (row.note or "")


def is_narrow(row: Row | None) -> bool:
    """Return whether both ends of a row's interval would be the same number with two decimals."""
    return row is not None and row.low is not None and row.high is not None and row.high - row.low < NARROW


def metric_title(metric: str, time: str = "") -> str:
    """Return a metric's title, with the column of the time where the metric is at a time."""
    return metric_of(metric).title + (f" ({time})" if time and "@" in metric else "")


def model_name(model: str) -> str:
    """Return the name of a model for readers."""
    if ":" in model:
        kind, site = model.split(":", 1)
        return {
            "local": f"{site} alone",
            "without": f"federated without {site}",
            "seed": f"federated with seed {site}",
        }.get(kind, f"personalised for {site}")
    return {FEDERATED: "Federated", POOLED: "Pooled", UNTRAINED: "Untrained"}.get(model, model)


def site_name(site: str) -> str:
    """Return the name of a hospital for readers."""
    return {ALL_SITES: "all hospitals of the study", SITE_MEAN: "mean of the study's hospitals"}.get(
        site, site
    )


def p_value(p: float) -> str:
    """Return a p value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def both_p(row: Row) -> str:
    """Return a difference's p value, and Holm's beside it; a dash if it was not tested."""
    if row.p is None:
        return "–"
    return p_value(row.p) + (f" (Holm {p_value(row.p_holm)})" if row.p_holm is not None else "")


def duration(seconds: float) -> str:
    """Return a duration as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def round_ranges(numbers: Sequence[int]) -> str:
    """Return round numbers as text: 'rounds 3 to 5, 8'."""
    ranges: list[list[int]] = []
    for value in sorted(numbers):
        if ranges and value == ranges[-1][-1] + 1:
            ranges[-1].append(value)
        else:
            ranges.append([value])
    words = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in ranges)
    return f"round{'s' if len(numbers) > 1 else ''} {words}"


def coded(text: str) -> str:
    """Return a sentence as HTML, with what stands in backticks as code.

    >>> coded("`medfed audit` & more")
    '<code>medfed audit</code> &amp; more'
    """
    # The pages' templates write an apostrophe so, and for_html the other way.
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", for_html(text).replace("&#x27;", "&#39;"))


def unbroken(text: str) -> str:
    """Return text as HTML in which a value's interval and a word with a hyphen stay on one line.

    >>> unbroken("0.82 (0.74 to 0.87) in 160")
    '0.82 <span class="whole">(0.74 to 0.87)</span> <span class="whole">in 160</span>'
    """
    return re.sub(
        r"(\([^()]*\d to [^()]*\)†?,?|[\d.]+ to [\d.]+|\bin \d+$|\b\w+-\w+\b)",
        r'<span class="whole">\1</span>',
        for_html(text).replace("&#x27;", "&#39;"),
    )


def shown_values(value: object) -> str:
    """Return a setting's value as text."""
    return ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
