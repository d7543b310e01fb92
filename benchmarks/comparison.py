"""One row of the table that `make bench` prints: a figure of medfed's, what it stands beside, and its bar.

A script of this folder that takes part has a function `compare(short)`, which yields the rows and is listed
in bench.py. Its own command prints the same rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HEADER = (
    "| what | medfed | beside | its figure | ratio | bar | met | note |\n|---|---|---|---|---|---|---|---|"
)


class Comparison(NamedTuple):
    """A measured figure.

    what, unit: of it.  ours: medfed's.  beside: what it is compared with.  theirs: its figure, in the same
    unit; None where there is none.  bar: the most that the ratio may be, or medfed's figure where there is
    nothing beside it; None where no bar was set.  note: why a figure is missing, or what explains it.
    """

    what: str
    ours: float | None
    unit: str
    beside: str = ""
    theirs: float | None = None
    bar: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Medfed's figure as a multiple of the other."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None if there is none, or nothing was measured."""
        judged = self.ratio if self.beside else self.ours
        return None if self.bar is None or judged is None else judged <= self.bar

    def line(self) -> str:
        """Return the row of the table."""
        bar = "" if self.bar is None else f"{self.bar:g}{'' if self.beside else f' {self.unit}'}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        figures = [self._figure(self.ours), self.beside, self._figure(self.theirs)]
        return f"| {' | '.join([self.what, *figures, ratio, bar, met, self.note])} |"

    def _figure(self, value: float | None) -> str:
        return "" if value is None else f"{value:.3g} {self.unit}"


def print_rows(rows: Iterable[Comparison]) -> list[Comparison]:
    """Print rows as a table, each as soon as it is there, and return them."""
    print(HEADER, flush=True)
    done = []
    for row in rows:
        print(row.line(), flush=True)
        done.append(row)
    return done


def in_a_process(script: str | Path, *words: str, env: dict[str, str] | None = None) -> Any:
    """Run a script of this folder in a process of its own, and return the JSON that it prints last.

    Raises:
        SystemExit: if the process fails, with the end of its output.
    """
    command: Sequence[str] = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
