"""The live table of a running study in a notebook's cell."""

from __future__ import annotations

import html
import importlib
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from medfed.runs.progress import NOBODY, Progress, ProgressTable
from medfed.runs.rounds import RoundReport
from medfed.wire.untrusted_text import for_terminal

# The shortest time between two drawings of the table: a cell's output travels to a browser.
REDRAW_S = 0.25

# How many lines of the log a cell shows.
MAX_LINES = 12


def notebook_progress() -> Progress:
    """Return a display that suits where this runs: a live table in a notebook's cell, else none."""
    return NotebookProgress() if is_notebook() else Progress()


def is_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class NotebookProgress(Progress):
    """A table in the cell that started the study, with one row per site and the last lines of its log."""

    def __init__(self) -> None:
        self._table = ProgressTable()
        self._lines: list[str] = []
        self._handle: Any = None
        self._drawn_s = 0.0
        self._lock = threading.Lock()

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        self._table = ProgressTable.begin(title, sites, rounds, metric)
        self._draw()

    def training(self, site: str, step: int, steps: int) -> None:
        self._table.train(site, step, steps)
        self._draw(now=False)

    def training_together(self, site: str, step: int, steps: int, turns: Collection[str]) -> None:
        self._table.train(site, step, steps, turns)
        self._draw(now=False)

    def connections(
        self,
        connected: Collection[str],
        awaited: Collection[str],
        remaining_s: float | None,
        stopped: Mapping[str, str] = NOBODY,
    ) -> None:
        stops = self._table.new_stops(stopped)
        self._table.update_connections(connected, awaited, remaining_s, stopped)
        for line in stops:
            self.log(line)
        self._draw(now=False)

    def round(self, report: RoundReport) -> None:
        for line in self._table.update(report):
            self.log(line)
        self._draw()

    def log(self, text: str) -> None:
        self._lines = [*self._lines, for_terminal(text)][-MAX_LINES:]
        self._draw()

    def stop(self) -> None:
        self._draw()

    def _draw(self, now: bool = True) -> None:
        with self._lock:
            if not now and time.monotonic() - self._drawn_s < REDRAW_S:
                return
            self._drawn_s = time.monotonic()
            ipython: Any = importlib.import_module("IPython.display")
            page = ipython.HTML(table_html(self._table, self._lines))
            if self._handle is None:
                self._handle = ipython.display(page, display_id=True)
            else:
                self._handle.update(page)


def table_html(table: ProgressTable, lines: Collection[str] = ()) -> str:
    """Return the table as HTML; whatever a site says in it is shown as text."""
    named = html.escape(table.metric_name or "score")
    head = "".join(f"<th>{name}</th>" for name in ("site", "cases", "status", "loss", named))
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in (site, str(row.cases or ""), row.words, _number(row.loss), _number(row.score))
        )
        + "</tr>"
        for site, row in sorted(table.rows.items())
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if table.rows else ""
    title = f"<p><b>{html.escape(table.title)}</b>, round {table.done} of {table.rounds}</p>" if body else ""
    return f"{title}{body}<pre>{html.escape(chr(10).join(lines))}</pre>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
