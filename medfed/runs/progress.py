"""The display of a running study: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from medfed.files import format_bytes
from medfed.runs import json_log
from medfed.runs.rounds import RoundReport, received_bytes
from medfed.wire.untrusted_text import for_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

# No site has stopped.
NOBODY: Mapping[str, str] = MappingProxyType({})

# The state of a site that said that it stopped, until it is started again.
SITE_STOPPED = "stopped"

# The states that a site leaves once its update is no longer awaited, or once its connection comes or goes.
_PASSING = ("training", "waiting", "not connected", SITE_STOPPED)


def state_of_site(state: str, is_connected: bool, is_awaited: bool) -> str:
    """Return a site's next state: one that is not connected is never said to wait, whoever is awaited."""
    if is_awaited:
        return "training" if is_connected else "not connected"
    if state in _PASSING:
        return "waiting" if is_connected else "not connected"
    return state


class Progress:
    """Receives a run's progress and shows nothing; a display shows what it overrides, and returns at once."""

    # Called with the run folder, once it is known; whoever serves the run's page sets it.
    on_opened: Callable[[Path], None] | None = None

    def opened(self, folder: Path) -> None:
        """Say which run folder the run writes to, once it is known."""
        if self.on_opened is not None:
            self.on_opened(folder)

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        """Begin a phase; `sites` holds each site's number of training cases, `metric` is shown per round."""

    def training(self, site: str, step: int, steps: int) -> None:
        """Show that a site has done `step` of `steps` training steps of this round."""

    def training_together(self, site: str, step: int, steps: int, turns: Collection[str]) -> None:
        """Show the same where several sites train at once: it takes turns with `turns` only."""
        self.training(site, step, steps)

    def waiting(
        self, connected: Collection[str], awaited: Collection[str], remaining_s: float | None
    ) -> None:
        """Show connected and awaited sites, and the seconds until the hub continues without them."""

    def connections(
        self,
        connected: Collection[str],
        awaited: Collection[str],
        remaining_s: float | None,
        stopped: Mapping[str, str] = NOBODY,
    ) -> None:
        """Show the same and which sites have `stopped` (why); a display of its own may leave this out."""
        self.waiting(connected, awaited, remaining_s)

    def round(self, report: RoundReport) -> None:
        """Show a finished round."""

    def log(self, text: str) -> None:
        """Show one line of text."""

    def stop(self) -> None:
        """End the phase, whether it succeeded or failed."""


@dataclass
class _Row:
    cases: int
    status: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    epsilon: float | None = None
    score: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    connected: bool = False
    # Since when it is awaited, or not connected, as a time of day here; '' if neither.
    since: str = ""

    @property
    def words(self) -> str:
        """The status, with the share of the round's steps that are done while the site trains."""
        done = f" {self.step / self.steps:.0%}" if self.status == "training" and self.steps else ""
        return self.status + done


_FAILED = ("refused", "absent")


@dataclass
class ProgressTable:
    """The state behind every display: one row per site, and how far the study is."""

    title: str = ""
    rounds: int = 0
    metric: str = ""
    done: int = 0
    # The last round that was finished before this process resumed the run.
    resumed_after: int | None = None
    began: float = 0.0
    rows: dict[str, _Row] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    noted: set[tuple[str, str]] = field(default_factory=set)
    round_remaining_s: float | None = None

    @classmethod
    def begin(cls, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> ProgressTable:
        """Return the state at the start of a phase."""
        rows = {site: _Row(cases) for site, cases in sites.items()}
        return cls(title, rounds, metric, began=time.monotonic(), rows=rows)

    def update_connections(
        self,
        connected: Collection[str],
        awaited: Collection[str],
        remaining_s: float | None,
        stopped: Mapping[str, str] = NOBODY,
    ) -> list[str]:
        """Store who is connected and awaited; return one sentence per change."""
        changes = self.new_stops(stopped)
        for site in sorted({*connected, *awaited} - {*self.rows}):  # it has joined since
            self.rows[site] = _Row(0)
        for site, row in self.rows.items():
            is_connected = site in connected
            if site in stopped:
                self.failed.add(site)  # so the round does not say it again
                row.status, row.connected, row.since = SITE_STOPPED, is_connected, ""
                continue
            if is_connected != row.connected:
                changes.append(f"{site} {'is connected' if is_connected else 'is silent'}")
            row.connected = is_connected
            status = state_of_site(row.status, is_connected, site in awaited)
            if site not in awaited and status != "not connected":
                row.since = ""
            elif status != row.status or not row.since:
                row.since = time.strftime("%H:%M")
            row.status = status
        self.round_remaining_s = remaining_s
        return changes

    def new_stops(self, stopped: Mapping[str, str]) -> list[str]:
        """Return one sentence per site that has stopped and is not shown so yet."""
        known = {site for site, row in self.rows.items() if row.status != SITE_STOPPED}
        return [f"{site} has stopped: {why}" for site, why in stopped.items() if site in known]

    def train(self, site: str, step: int, steps: int, turns: Collection[str] | None = None) -> None:
        """Store that a site trains, and none of those with which it takes turns: all, if none are given."""
        row = self.rows.get(site)
        if row is not None:
            for name, other in self.rows.items():
                if other.status == "training" and (turns is None or name in turns):
                    other.status = "waiting"
            row.status, row.step, row.steps = "training", step, steps

    def update(self, report: RoundReport) -> list[str]:
        """Store a round; return new notes, and why sites failed unless they had in the round before."""
        final = report.scored is not None or report.round > self.rounds
        if self.resumed_after is None:
            self.resumed_after = report.round - 1
        self.done = self.done if final else min(report.round, self.rounds)
        failures = []
        for result in report.results:
            row = self.rows.setdefault(result.site, _Row(0))
            if result.status in _FAILED and result.reason and result.site not in self.failed:
                failures.append(f"round {report.round}: {result.site} {result.status}: {result.reason}")
            # A site's note is shown once, not in each round in which it holds.
            new = [note for note in result.notes if (result.site, note) not in self.noted]
            self.noted.update((result.site, note) for note in new)
            failures += [f"round {report.round}: {result.site}: {note}" for note in new]
            (self.failed.add if result.status in _FAILED else self.failed.discard)(result.site)
            row.status = result.status
            if result.status == "merged":
                row.loss = result.scalars.get("train/loss")
            if (
                result.status not in _FAILED
            ):  # a number that stays in its hospital is not that of an earlier round
                row.score = result.scalars.get(self.metric)
            row.epsilon = result.scalars.get("privacy/epsilon", row.epsilon)
            row.bytes_up += result.bytes_up
            row.bytes_down += received_bytes(result.status, report.bytes_down)
            row.step = row.steps = 0
            row.since = ""
        return failures

    @property
    def metric_name(self) -> str:
        """The score's name beside the training loss, `loss`."""
        return self.metric if self.metric == "val/loss" else self.metric.removeprefix("val/")

    @property
    def deadline(self) -> str:
        if self.round_remaining_s is None:
            return ""
        return f"   round ends in {_format_duration(max(0, self.round_remaining_s))}"

    @property
    def remaining_s(self) -> float | None:
        measured = self.done - (self.resumed_after or 0)
        if measured <= 0:
            return None
        return (time.monotonic() - self.began) / measured * (self.rounds - self.done)


class PlainProgress(Progress):
    """One line per round, for a log file or a pipe; `write` gets each line, and the round it is about."""

    def __init__(self, write: Callable[[str, int | None], None] | None = None) -> None:
        self._table = ProgressTable()
        self._write = write or _print_line

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        self._table = ProgressTable.begin(title, sites, rounds, metric)
        names = [f"{site} ({cases} cases)" if cases else site for site, cases in sites.items()]
        self.log(f"{title}: {', '.join(names)}")

    def connections(
        self,
        connected: Collection[str],
        awaited: Collection[str],
        remaining_s: float | None,
        stopped: Mapping[str, str] = NOBODY,
    ) -> None:
        for change in self._table.update_connections(connected, awaited, remaining_s, stopped):
            self.log(change)

    def round(self, report: RoundReport) -> None:
        table = self._table
        for line in table.update(report):
            self._write(line, report.round)
        named = table.metric_name
        parts = []
        for site, row in sorted(table.rows.items()):
            if row.status in ("merged", "reported"):
                unknown = f" {named} –" if named else ""
                score = unknown if row.score is None else f" {named} {row.score:.3f}"
                loss = "" if row.loss is None or row.status == "reported" else f" loss {row.loss:.3f}"
                spent = "" if row.epsilon is None else f" epsilon {row.epsilon:.2f}"
                parts.append(f"{site}{loss}{score}{spent}")
            else:
                parts.append(f"{site} {row.status}")
        if report.scored is not None or report.round > table.rounds:
            model = f"model of round {report.scored}" if report.scored and not report.final else "final model"
            self._write(f"{model}   {' | '.join(parts)}", report.round)
            return
        left = "" if table.remaining_s is None else f", {_format_duration(table.remaining_s)} left"
        text = f"round {report.round}/{table.rounds}   {' | '.join(parts)}   {report.seconds:.1f} s{left}"
        self._write(text, report.round)

    def log(self, text: str) -> None:
        self._write(text, None)


def _print_line(text: str, round: int | None) -> None:
    print(for_terminal(text), flush=True)


class LiveProgress(Progress):
    """A table on a terminal with one row per site, redrawn four times a second."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._table = ProgressTable()
        self._live: Live | None = None

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        from rich.live import Live

        self.stop()
        self._table = ProgressTable.begin(title, sites, rounds, metric)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._live.start()

    def training(self, site: str, step: int, steps: int) -> None:
        self._table.train(site, step, steps)

    def training_together(self, site: str, step: int, steps: int, turns: Collection[str]) -> None:
        self._table.train(site, step, steps, turns)

    def connections(
        self,
        connected: Collection[str],
        awaited: Collection[str],
        remaining_s: float | None,
        stopped: Mapping[str, str] = NOBODY,
    ) -> None:
        stops = self._table.new_stops(stopped)  # the table shows who is silent, and not why a site stopped
        self._table.update_connections(connected, awaited, remaining_s, stopped)
        for line in stops:
            self.log(line)

    def round(self, report: RoundReport) -> None:
        for line in self._table.update(report):
            self.log(line)

    def log(self, text: str) -> None:
        from rich.text import Text

        # Not as a string: rich would take `[a, b]` for markup, and drop it or end with an error.
        self._console.print(Text(for_terminal(text)), highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.measure import Measurement
        from rich.text import Text

        state = self._table
        left_out = [] if any(row.cases for row in state.rows.values()) else ["cases"]
        table, unlimited = _sites_table(state, left_out), self._console.options.update(max_width=_UNLIMITED)
        for name in _LEFT_OUT_FIRST:
            if Measurement.get(self._console, unlimited, table).maximum <= self._console.width:
                break
            left_out.append(name)
            table = _sites_table(state, left_out)
        return Group(Text(state.title, style="bold"), table, _foot(state, self._console.width), Text(""))


# The columns that a narrow terminal does without, rather than with cut numbers.
_LEFT_OUT_FIRST = ("received", "sent", "cases")

# How long the bar is where the line has room for it, and how wide a table may become that is only measured.
_BAR, _UNLIMITED = 30, 1000


def _sites_table(state: ProgressTable, left_out: Collection[str]) -> Table:
    """Return a row per site, without the columns that are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    named = state.metric_name or "score"
    names = ("site", "cases", "", "loss", named, "sent", "received")
    for name in names:
        if name not in left_out:
            table.add_column(name, justify="left" if name in ("site", "") else "right", no_wrap=True)
    for site, row in sorted(state.rows.items()):
        cells = (
            Text(site, style="bold"),
            str(row.cases or ""),
            _status(row),
            _number(row.loss),
            _number(row.score),
            _bytes(row.bytes_up),
            _bytes(row.bytes_down),
        )
        table.add_row(*(cell for name, cell in zip(names, cells, strict=True) if name not in left_out))
    return table


def _foot(state: ProgressTable, width: int) -> Table:
    """Return the round, a bar as long as the line leaves room for, and the time."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    left = "" if state.remaining_s is None else f"   {_format_duration(state.remaining_s)} left"
    round = f"round {min(state.done + 1, state.rounds)}/{state.rounds}"
    words = f"{_format_duration(time.monotonic() - state.began)}{left}{state.deadline}"
    room = width - len(round) - len(words) - 2 * 3  # three gaps
    foot = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=state.rounds, completed=state.done, width=max(1, min(_BAR, room)))
    foot.add_row(round, bar, words)
    return foot


# Statuses are words, not symbols that must be learnt; colour repeats the word and never replaces it.
_STYLES = {
    "training": "cyan",
    "merged": "green",
    "refused": "red",
    "absent": "red",
    "not connected": "red",
    "waiting": "dim",
}


def _status(row: _Row) -> RenderableType:
    from rich.text import Text

    if row.status == "training" and row.steps:
        filled = round(10 * row.step / row.steps)
        return Text("training " + "━" * filled, style="cyan").append("━" * (10 - filled), style="dim")
    since = f"{row.status} since {row.since}" if row.since else row.status
    return Text(f"{since:<19}", style=_STYLES.get(row.status, ""))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bytes(count: int) -> str:
    return format_bytes(count) if count else ""


def _format_duration(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"


def progress_display(quiet: bool = False) -> Progress:
    """Return the display that suits standard output, or a log of JSON; one that shows nothing if `quiet`."""
    if quiet:
        return Progress()
    if json_log.is_active():
        return PlainProgress(json_log.write_progress)
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()


@contextmanager
def show_warnings(display: Progress) -> Iterator[None]:
    """Show medfed's logged warnings in the display, such as a lost connection or a full disk."""
    if json_log.is_active():  # which has them already, with level and logger
        yield
        return

    class ProgressHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            display.log(record.getMessage())

    logger, handler = logging.getLogger("medfed"), ProgressHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
