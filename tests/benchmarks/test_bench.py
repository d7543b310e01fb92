"""The table of `make bench`: its ratios, whether a bar is met, and what stays in the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [name for name, one in sys.modules.items() if _is_here(one)]:
        del sys.modules[name]


def _is_here(module):
    return Path(getattr(module, "__file__", None) or "/").parent == BENCHMARKS


def test_a_bar_is_of_the_ratio_or_of_our_figure_where_nothing_stands_beside_it():
    from comparison import Comparison

    assert Comparison("epoch", 1.04, "s", "lightning", 1.0, 1.03).met is False
    assert Comparison("epoch", 1.03, "s", "lightning", 1.0, 1.03).met is True
    assert Comparison("slope", 0.9, "MB", bar=1.0).met is True
    assert Comparison("slope", 1.1, "MB", bar=1.0).met is False
    assert Comparison("round", 1.0, "s", "a peer", None, 1.0, "not installed").met is None
    line = Comparison("round", 3.0, "s", "loop", 2.0, 1.2, "noted").line()
    assert line == "| round | 3 s | loop | 2 s | 1.50 | 1.2 | **no** | noted |"


def test_the_measured_parts_are_replaced_and_all_else_stays(tmp_path):
    import bench

    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nWhat was measured.\n\n## Hearts\n\n### Ours\n\n.79\n")
    bench.write(results, {"soak": "### soak\n\nold soak", "start": "### start\n\nstart"})
    bench.write(results, {"soak": "### soak\n\nnew soak"})
    text = results.read_text()
    assert text.startswith("# Results\n\nWhat was measured.\n\n## Speed and scale\n")
    assert text.endswith("\n## Hearts\n\n### Ours\n\n.79\n")
    assert "old soak" not in text
    assert text.index("### start\n\nstart") < text.index("### soak\n\nnew soak") < text.index("## Hearts")
    again = text
    bench.write(results, {"soak": "### soak\n\nnew soak"})
    assert results.read_text() == again


def test_a_part_that_fails_says_so_after_its_rows(monkeypatch):
    import bench
    from comparison import Comparison

    def fails(short):
        yield Comparison("first", 1.0, "s")
        raise SystemExit("no broker\nnats-server is missing")

    monkeypatch.setitem(bench.PARTS, "exchange", fails)
    section = bench.measure("exchange", short=True)
    assert "| first | 1 s |" in section
    assert section.endswith("The rest was not measured: nats-server is missing")


def test_a_round_counts_for_the_soak_once_its_line_is_written(tmp_path):
    import soak

    assert soak.rounds_of(tmp_path) == 0
    lines = [json.dumps({"round": number, "site": site}) for number in (1, 2) for site in ("a", "b")]
    (tmp_path / "rounds.jsonl").write_text("\n".join(lines) + "\n" + lines[-1][:5])
    assert soak.rounds_of(tmp_path) == 0  # a line that is being written says nothing yet
    (tmp_path / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    assert soak.rounds_of(tmp_path) == 2


def test_growth_is_per_100_rounds_after_the_warm_up():
    import soak

    # 500 rounds: 50 MB while it warms up, then 0.02 MB a round, and one handle more for every 100 rounds.
    looks = [
        soak.Look("hub", n, 300 + (min(n, 100) / 2) + 0.02 * max(0, n - 100), 10 + n // 100, 4, 7, 1000 * n)
        for n in range(1, 501)
    ]
    memory, handles = soak.growth(looks, 500)
    assert memory.ours == pytest.approx(2.0)
    assert memory.met is False
    assert "+0 threads, +0 files, 1.00 kB of files per round" in memory.note
    assert (handles.ours, handles.met) == (3, False)
