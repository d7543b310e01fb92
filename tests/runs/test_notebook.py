"""The live table in a notebook's cell: one cell output, redrawn; what a site says is text and not HTML."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from medfed.runs import notebook
from medfed.runs.notebook import NotebookProgress, is_notebook, notebook_progress, table_html
from medfed.runs.progress import Progress, ProgressTable
from medfed.runs.rounds import RoundReport, SiteResult


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell: the pages that were drawn in it, in order."""
    drawn: list[str] = []
    handle = SimpleNamespace(update=lambda page: drawn.append(page))
    display = ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda page, display_id: drawn.append(page) or handle
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    ipython.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return drawn


def test_only_a_notebook_gets_a_table(cell, monkeypatch):
    assert is_notebook()
    assert isinstance(notebook_progress(), NotebookProgress)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)  # imported by a plain script
    assert not is_notebook()
    assert type(notebook_progress()) is Progress
    monkeypatch.delitem(sys.modules, "IPython")
    assert not is_notebook()


def test_the_table_is_redrawn_in_one_cell(cell, monkeypatch):
    monkeypatch.setattr(notebook, "REDRAW_S", 1e9)
    shown = NotebookProgress()
    shown.start("lesions", {"north": 4, "south": 3}, 2, "val/dice")
    shown.training("north", 1, 4)  # too soon after the last drawing
    results = (
        SiteResult("north", "merged", scalars={"val/dice": 0.5, "train/loss": 0.25}),
        SiteResult("south", "refused", "too long"),
    )
    shown.round(RoundReport(1, results, 1.0, 10))
    shown.stop()
    first, last = cell[0], cell[-1]
    assert len(cell) == 4  # start, the refusal's line, the round, the end
    assert "lesions</b>, round 0 of 2" in first
    assert "round 1 of 2" in last
    assert "<tr><td>north</td><td>4</td><td>merged</td><td>0.250</td><td>0.500</td></tr>" in last
    assert "round 1: south refused: too long" in last


def test_what_a_site_says_is_text():
    table = ProgressTable.begin("<b>x</b>", {"<script>": 1}, 1, "val/loss")
    page = table_html(table, ["<img src=x>"])
    assert not {"<script>", "<img", "<b>x"} & {part for part in ("<script>", "<img", "<b>x") if part in page}
    assert "&lt;script&gt;" in page


def test_a_cell_says_once_why_a_site_stopped(cell):
    shown = NotebookProgress()
    shown.start("lesions", {"north": 4, "south": 3}, 2, "val/dice")
    for _ in range(2):
        shown.connections(["north"], ["north"], None, {"south": "its disk is full"})
    assert cell[-1].count("south has stopped: its disk is full") == 1
