"""The figures of the report as SVG text.

Equal numbers give equal bytes. Every stroke is styled by a class of `page.css`, so figures follow the page's
light, dark and print colours. Every figure has a title for screen readers. Coordinates are those of the view
box, with y pointing downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from medfed.wire.untrusted_text import for_html

Point = tuple[float, float]
Range = tuple[float, float]


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _svg(width: float, height: float, title: str, body: Sequence[str], name: str) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-label="{for_html(title)}">{"".join(body)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _text(x: float, y: float, words: str, name: str, anchor: str = "start") -> str:
    return f'<text class="{name}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{for_html(words)}</text>'


def _path(points: Sequence[Point], name: str) -> str:
    coordinates = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return f'<polyline class="{name}" points="{coordinates}"/>'


def _circle(point: Point, radius: float, name: str) -> str:
    return f'<circle class="mark {name}" cx="{_n(point[0])}" cy="{_n(point[1])}" r="{_n(radius)}"/>'


def _linear(axis: Range, start: float, stop: float) -> Callable[[float], float]:
    """Return the function from a value to its coordinate; values beyond the axis are drawn at its ends."""
    low, high = axis

    def coordinate(value: float) -> float:
        return start + (min(max(value, low), high) - low) / (high - low) * (stop - start)

    return coordinate


def _y_grid(axis: Range, y: Callable[[float], float], left: float, right: float, wanted: int = 4) -> str:
    """Return a line from left to right and a label for each round number of the y axis."""
    return "".join(
        _line(left, y(mark), right, y(mark), "faint")
        + _text(left - 6, y(mark) + 3.5, f"{mark:g}", "tick", "end")
        for mark in _ticks_within(axis, wanted)
    )


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return about `wanted` round numbers that span low to high."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough - 1e-12)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(multiple * step, 12) for multiple in range(first, last + 1)]


def _ticks_within(axis: Range, wanted: int = 4) -> list[float]:
    return [mark for mark in ticks(*axis, wanted) if axis[0] - 1e-9 <= mark <= axis[1] + 1e-9]


def span(
    values: Sequence[float | None], lowest: float | None, highest: float | None, wanted: int = 4
) -> tuple[float, float]:
    """Return the limits of an axis for all values, rounded outwards but within the metric's range."""
    known = [value for value in values if value is not None]
    if not known:
        return (lowest or 0.0), (highest if highest is not None else 1.0)
    marks = ticks(min(known), max(known), wanted)
    low = marks[0] if lowest is None else max(marks[0], lowest)
    high = marks[-1] if highest is None else min(marks[-1], highest)
    return low, high if high > low else low + 1.0


def whisker(
    estimate: tuple[float, float | None, float | None],
    axis: Range,
    reference: float | None,
    *,
    strong: bool,
    title: str,
) -> str:
    """Return one row of a forest plot: value, interval, and a dashed line at the reference."""
    value, low, high = estimate
    width, height, inset = 220.0, 37.0, 6.0
    x = _linear(axis, inset, width - inset)
    middle = height / 2
    body = []
    if reference is not None and axis[0] <= reference <= axis[1]:
        body.append(_line(x(reference), 0, x(reference), height, "reference"))
    name = "strong" if strong else "plain"
    if low is not None and high is not None:
        body.append(_line(x(low), middle, x(high), middle, f"whisker {name}"))
        body += [_line(x(end), middle - 4, x(end), middle + 4, f"whisker {name}") for end in (low, high)]
    body.append(_circle((x(value), middle), 4.5, name))
    return _svg(width, height, title, body, "cell")


def scale(axis: Range) -> str:
    """Return the axis labels below a column of whiskers."""
    width, inset = 220.0, 6.0
    body = []
    marks, x_of = _ticks_within(axis), _linear(axis, inset, width - inset)
    for index, mark in enumerate(marks):
        x = x_of(mark)
        anchor = "start" if index == 0 else "end" if index == len(marks) - 1 else "middle"
        body.append(_line(x, 0, x, 4, "faint"))
        body.append(_text(min(max(x, 1), width - 1), 15, f"{mark:g}", "tick", anchor))
    return _svg(width, 18, f"axis from {axis[0]:g} to {axis[1]:g}", body, "cell")


def panel(
    title: str,
    line: Sequence[Point],
    others: Sequence[Sequence[Point]],
    rounds: tuple[int, int],
    axis: Range,
    gaps: Sequence[int] = (),
) -> str:
    """Return one hospital's curve over rounds in the accent colour, in front of the others in grey."""
    width, height, left, right, top, base = 260.0, 150.0, 34.0, 250.0, 8.0, 128.0
    x = _linear((rounds[0], max(rounds[1], rounds[0] + 1)), left, right)
    y = _linear(axis, base, top)
    body = [_y_grid(axis, y, left, right, wanted=3)]
    for number in sorted(set(rounds)):
        anchor = "start" if number == rounds[0] else "end"
        body.append(_text(x(number), height - 6, f"round {number}", "tick", anchor))
    for number in gaps:
        start, stop = x(number) - 3, x(number) + 3
        body += [_line(start, base - 3, stop, base + 3, "gap"), _line(start, base + 3, stop, base - 3, "gap")]
    body += [_path([(x(a), y(b)) for a, b in other], "curve other") for other in others if len(other) > 1]
    # A missed round leaves a gap in the curve: a line across it would show values that were never measured.
    piece: list[Point] = []
    for before, after in pairwise([*line, (math.inf, 0.0)]):
        piece.append((x(before[0]), y(before[1])))
        if after[0] - before[0] > 1:
            body.append(_path(piece, "curve strong"))
            if len(piece) == 1:
                body.append(_circle(piece[0], 2.5, "strong"))
            piece = []
    return _svg(width, height, title, body, "panel")


def strip(statuses: Sequence[str], title: str) -> str:
    """Return one hospital's rounds as a row of boxes, one per round, drawn by its status.

    Filled: took part. Hollow: absent. One stroke: late. Crossed: refused. Grey: not sampled.
    """
    size = 14.0 if len(statuses) <= 24 else max(4.0, 336.0 / len(statuses))
    inside = size - (3.0 if size >= 8 else 1.0)
    body = []
    for index, status in enumerate(statuses):
        x = index * size
        name = {"merged": "merged", "sent": "merged", "not sampled": "unsampled"}.get(status, "absent")
        body.append(
            f'<rect class="round {name}" x="{_n(x + 1)}" y="2" width="{_n(inside)}" '
            f'height="{_n(inside)}" rx="1.5"/>'
        )
        if status in ("refused", "late"):
            body.append(_line(x + 1, 2, x + 1 + inside, 2 + inside, "gap"))
            if status == "refused":
                body.append(_line(x + 1, 2 + inside, x + 1 + inside, 2, "gap"))
    return _svg(max(len(statuses), 1) * size + 2, inside + 4, title, body, "strip")


def square(
    title: str,
    labels: tuple[str, str],
    lines: Sequence[tuple[str, Sequence[Point]]],
    points: Sequence[tuple[float, float, float, float]] = (),
    y_axis: Range = (0.0, 1.0),
) -> str:
    """Return a diagram with labelled axes, named lines, and points (x, y, low, high) with whiskers."""
    width, height, left, right, top, base = 320.0, 290.0, 44.0, 306.0, 10.0, 250.0
    x_of, y_of = _linear((0.0, 1.0), left, right), _linear(y_axis, base, top)
    body = [_y_grid(y_axis, y_of, left, right)]
    body += [_text(x_of(mark), base + 15, f"{mark:g}", "tick", "middle") for mark in ticks(0.0, 1.0)]
    body.append(_text((left + right) / 2, height - 6, labels[0], "label", "middle"))
    body.append(
        f'<text class="label" text-anchor="middle" transform="translate(11 {_n((top + base) / 2)}) '
        f'rotate(-90)">{for_html(labels[1])}</text>'
    )
    body += [_path([(x_of(x), y_of(y)) for x, y in line], f"curve {name}") for name, line in lines if line]
    for x, y, low, high in points:
        body.append(_line(x_of(x), y_of(low), x_of(x), y_of(high), "whisker strong"))
        body.append(_circle((x_of(x), y_of(y)), 4, "strong"))
    return _svg(width, height, title, body, "square")


# About how wide a character of a label is.
CHARACTER_PX = 6.8
# A dot's diameter in a swarm, and how many may stand above each other before they overlap.
DOT_PX, MAX_STACK = 5.0, 9


def swarm(
    title: str,
    groups: Sequence[tuple[str, Sequence[float]]],
    axis: Range,
    label: str,
    strong: Sequence[Sequence[bool]] = (),
) -> str:
    """Return every value as a dot on a horizontal axis, one row per group; near values stand on each other.

    A bar marks each group's median. Beyond `MAX_STACK` dots at one place they are drawn over each other.
    `strong` says by group which values are drawn filled, in the accent colour; the others are hollow then.
    """
    longest = max((len(name) for name, _ in groups), default=0)
    left, row = min(max(60.0, CHARACTER_PX * longest + 16), 210.0), DOT_PX * (MAX_STACK + 2)
    width = left + 322.0
    right = width - 10
    height = row * len(groups) + 40
    x_of = _linear(axis, left, right)
    body = []
    for mark in _ticks_within(axis):
        body.append(_line(x_of(mark), 0, x_of(mark), height - 36, "faint"))
        body.append(_text(x_of(mark), height - 22, f"{mark:g}", "tick", "middle"))
    body.append(_text((left + right) / 2, height - 5, label, "label", "middle"))
    for place, (name, values) in enumerate(groups):
        middle = row * (place + 0.5)
        body.append(_text(left - 8, middle + 4, name, "label", "end"))
        colours = strong[place] if strong else [False] * len(values)
        dots = sorted(zip(values, colours, strict=True))
        body += [
            _circle(point, DOT_PX / 2, "strong" if colour else "hollow" if strong else "plain")
            for point, (_, colour) in zip(_stacked(values, x_of, middle), dots, strict=True)
        ]
        if values:
            at = x_of(median(values))
            body.append(_line(at, middle - row * 0.4, at, middle + row * 0.4, "whisker strong"))
    return _svg(width, height, title, body, "swarm")


def _stacked(values: Sequence[float], x_of: Callable[[float], float], middle: float) -> list[Point]:
    """Return where each value's dot stands: at its own x, above and below those that it would touch."""
    taken: dict[int, int] = {}
    points = []
    for x in sorted(x_of(value) for value in values):
        column = int(x // DOT_PX)
        number = taken.get(column, 0)
        taken[column] = number + 1
        number %= MAX_STACK
        offset = (number + 1) // 2 * (1 if number % 2 else -1)
        points.append((x, middle + offset * DOT_PX))
    return points


def agreement(
    title: str, points: Sequence[Point], bounds: tuple[float, float, float] | None, labels: tuple[str, str]
) -> str:
    """Return a Bland-Altman plot: differences over means, with lower limit, mean and upper limit."""
    width, height, left, right, top, base = 440.0, 300.0, 60.0, 430.0, 10.0, 250.0
    every = [x for x, _ in points]
    margin = 0.05 * (max(every, default=0.0) - min(every, default=0.0))
    x_axis = span([min(every, default=0.0) - margin, max(every, default=0.0) + margin], None, None)
    y_axis = span([*(y for _, y in points), 0.0, *(bounds or ())], None, None)
    x_of, y_of = _linear(x_axis, left, right), _linear(y_axis, base, top)
    body = [_y_grid(y_axis, y_of, left, right)]
    body += [_text(x_of(mark), base + 15, f"{mark:g}", "tick", "middle") for mark in _ticks_within(x_axis)]
    body.append(_text((left + right) / 2, height - 8, labels[0], "label", "middle"))
    body.append(
        f'<text class="label" text-anchor="middle" transform="translate(12 {_n((top + base) / 2)}) '
        f'rotate(-90)">{for_html(labels[1])}</text>'
    )
    for place, value in enumerate(bounds or ()):
        name = "whisker strong" if place == 1 else "reference"
        body.append(_line(left, y_of(value), right, y_of(value), name))
    body += [_circle((x_of(x), y_of(y)), 3, "plain") for x, y in points]
    return _svg(width, height, title, body, "swarm")
