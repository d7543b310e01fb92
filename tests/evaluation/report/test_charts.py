"""The figures: coordinates computed by hand from the view box, and nothing drawn that was not measured."""

from __future__ import annotations

import re

import pytest

from medfed.evaluation.report import charts


def lines_of(svg, name):
    """The coordinates (x1, y1, x2, y2) of the lines of one class."""
    matches = re.findall(rf'<line class="{name}" x1="(\S+)" y1="(\S+)" x2="(\S+)" y2="(\S+)"/>', svg)
    return [tuple(map(float, line)) for line in matches]


def paths_of(svg, name):
    matches = re.findall(rf'<polyline class="{name}" points="([^"]+)"/>', svg)
    return [[tuple(map(float, point.split(","))) for point in path.split()] for path in matches]


def circles_of(svg):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="(\S+)" cy="(\S+)"', svg)]


def test_ticks_are_round_and_span_the_values():
    assert charts.ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert charts.ticks(0.53, 0.87) == [0.5, 0.6, 0.7, 0.8, 0.9]
    # A single value gets an axis as long as itself.
    assert charts.ticks(2.0, 2.0) == [2.0, 2.5, 3.0, 3.5, 4.0]


def test_an_axis_stays_within_the_metrics_range():
    assert charts.span([0.97, 1.0], 0.0, 1.0) == (0.97, 1.0)
    assert charts.span([None], 0.0, None) == (0.0, 1.0)
    assert charts.span([1.0, None], 0.0, 1.0) == (1.0, 2.0)


def test_a_whisker_lies_where_its_numbers_do():
    # The axis 0 to 1 is drawn from x = 6 to x = 214, so 0.5 lies at 110; the row is 37 high.
    svg = charts.whisker((0.5, 0.25, 0.75), (0.0, 1.0), 0.9, strong=True, title="Dice <0.5>")
    assert circles_of(svg) == [(110.0, 18.5)]
    assert lines_of(svg, "whisker strong") == [
        (58.0, 18.5, 162.0, 18.5), (58.0, 14.5, 58.0, 22.5), (162.0, 14.5, 162.0, 22.5),
    ]  # fmt: skip
    assert lines_of(svg, "reference") == [(193.2, 0.0, 193.2, 37.0)]
    assert 'aria-label="Dice &lt;0.5&gt;"' in svg


def test_a_reference_beyond_the_axis_is_not_drawn():
    svg = charts.whisker((0.5, None, None), (0.4, 0.6), 0.9, strong=False, title="Dice")
    assert "<line" not in svg


def test_a_missed_round_leaves_a_gap_in_the_curve():
    # Rounds 0 to 4 are drawn from x = 34 to x = 250 (54 each), values 0 to 1 from y = 128 up to y = 8.
    line = [(0.0, 0.0), (1.0, 0.5), (3.0, 1.0), (4.0, 1.0)]
    svg = charts.panel("north", line, [[(0.0, 1.0), (4.0, 1.0)]], (0, 4), (0.0, 1.0), gaps=[2])
    assert paths_of(svg, "curve strong") == [[(34.0, 128.0), (88.0, 68.0)], [(196.0, 8.0), (250.0, 8.0)]]
    assert paths_of(svg, "curve other") == [[(34.0, 8.0), (250.0, 8.0)]]
    assert lines_of(svg, "gap") == [(139.0, 125.0, 145.0, 131.0), (139.0, 131.0, 145.0, 125.0)]


def test_a_single_measured_round_is_a_point():
    svg = charts.panel("north", [(0.0, 0.5), (2.0, 0.5)], [], (0, 2), (0.0, 1.0))
    assert circles_of(svg) == [(34.0, 68.0), (250.0, 68.0)]


@pytest.mark.parametrize(
    ("status", "name", "strokes"),
    [("merged", "merged", 0), ("absent", "absent", 0), ("not sampled", "unsampled", 0), ("late", "absent", 1),
     ("refused", "absent", 2)],
)  # fmt: skip
def test_a_round_is_drawn_by_its_status(status, name, strokes):
    svg = charts.strip([status], "north")
    assert f'<rect class="round {name}"' in svg
    assert len(lines_of(svg, "gap")) == strokes


def test_a_diagram_has_its_lines_and_points_at_their_values():
    # x 0 to 1 is drawn from 44 to 306, y 0 to 1 from 250 up to 10.
    svg = charts.square("ROC", ("x", "y"), [("dashed", [(0.0, 0.0), (1.0, 1.0)])], [(0.5, 0.5, 0.25, 0.75)])
    assert paths_of(svg, "curve dashed") == [[(44.0, 250.0), (306.0, 10.0)]]
    assert lines_of(svg, "whisker strong") == [(175.0, 190.0, 175.0, 70.0)]
    assert circles_of(svg) == [(175.0, 130.0)]


def test_the_labels_of_a_scale_stay_within_its_width():
    svg = charts.scale((0.0, 1.0))
    matches = re.findall(r'<text class="tick" x="(\S+)" y="15" text-anchor="(\w+)">(\S+)</text>', svg)
    assert matches == [
        ("6", "start", "0"), ("58", "middle", "0.25"), ("110", "middle", "0.5"), ("162", "middle", "0.75"),
        ("214", "end", "1"),
    ]  # fmt: skip
