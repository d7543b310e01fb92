"""What a person sees while a study runs: a table that is redrawn on a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from medfed.runs.rounds import RoundReport

if TYPE_CHECKING:
    from rich.console import RenderableType


class Progress(Protocol):
    """What a run tells while it goes on; every verb returns at once."""

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        """A phase begins: its sites with their training cases, how many rounds it has, and
        the metric to show.
        """
        ...

    def training(self, site: str, step: int, steps: int) -> None:
        """A site has done `step` of `steps` steps of this round."""
        ...

    def waiting(self, here: Collection[str], awaited: Collection[str], left_s: float | None) -> None:
        """A hub across machines waits: which sites are connected, which it awaits, seconds until
        it goes on without.
        """
        ...

    def round(self, report: RoundReport) -> None:
        """A round is over."""
        ...

    def say(self, text: str) -> None:
        """Something worth a line happened."""
        ...

    def stop(self) -> None:
        """The phase is over, for good or ill."""
        ...


class Silent:
    """Says nothing: medfed as a library."""

    def waiting(self, here: Collection[str], awaited: Collection[str], left_s: float | None) -> None:
        pass

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        pass

    def training(self, site: str, step: int, steps: int) -> None:
        pass

    def round(self, report: RoundReport) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def stop(self) -> None:
        pass


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
    here: bool | None = None


_FAILED = ("refused", "absent")


@dataclass
class _Table:
    """The state behind both displays."""

    title: str = ""
    rounds: int = 0
    metric: str = ""
    done: int = 0
    # Rounds that were over before this process began, when it resumes one.
    before: int | None = None
    began: float = 0.0
    rows: dict[str, _Row] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    left_of_round_s: float | None = None

    def connect(self, here: Collection[str], awaited: Collection[str], left_s: float | None) -> list[str]:
        """Take over who is connected and awaited; return what changed, in words."""
        told = []
        for site, row in self.rows.items():
            now = site in here
            if now != bool(row.here):
                told.append(f"{site} {'is connected' if now else 'is silent'}")
            row.here = now
            if site in awaited:
                row.status = "training" if now else "not connected"
        self.left_of_round_s = left_s
        return told

    def update(self, report: RoundReport) -> list[str]:
        """Take a round in; return why sites failed in it, told once and not again while they stay away."""
        closing = report.round > self.rounds
        if self.before is None:
            self.before = report.round - 1
        self.done = min(report.round, self.rounds)
        news = []
        for answer in report.results:
            row = self.rows.setdefault(answer.site, _Row(0))
            if answer.status in _FAILED and answer.reason and answer.site not in self.failed:
                news.append(f"round {report.round}: {answer.site} {answer.status}: {answer.reason}")
            (self.failed.add if answer.status in _FAILED else self.failed.discard)(answer.site)
            row.status = answer.status
            row.loss = answer.scalars.get("train/loss", row.loss)
            row.score = answer.scalars.get(self.metric, row.score)
            row.epsilon = answer.scalars.get("privacy/epsilon", row.epsilon)
            row.bytes_up += answer.bytes_up
            row.bytes_down += report.bytes_down if not closing else 0
            row.step = row.steps = 0
        return news

    @property
    def deadline(self) -> str:
        return (
            "" if self.left_of_round_s is None else f"   round ends in {_clock(max(0, self.left_of_round_s))}"
        )

    @property
    def left_s(self) -> float | None:
        here = self.done - (self.before or 0)
        if here <= 0:
            return None
        return (time.monotonic() - self.began) / here * (self.rounds - self.done)


class Lines:
    """A line a round, for a log file or a pipe."""

    def __init__(self) -> None:
        self._table = _Table()

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        rows = {site: _Row(cases) for site, cases in sites.items()}
        self._table = _Table(title, rounds, metric, began=time.monotonic(), rows=rows)
        self.say(
            f"{title}: {', '.join(f'{site} ({cases} cases)' if cases else site for site, cases in sites.items())}"
        )

    def training(self, site: str, step: int, steps: int) -> None:
        pass

    def waiting(self, here: Collection[str], awaited: Collection[str], left_s: float | None) -> None:
        for told in self._table.connect(here, awaited, left_s):
            self.say(told)

    def round(self, report: RoundReport) -> None:
        table = self._table
        for line in table.update(report):
            self.say(line)
        named = table.metric.removeprefix("val/")
        parts = []
        for site, row in sorted(table.rows.items()):
            if row.status in ("merged", "reported"):
                score = "" if row.score is None else f" {named} {row.score:.3f}"
                loss = "" if row.loss is None or row.status == "reported" else f" loss {row.loss:.3f}"
                spent = "" if row.epsilon is None else f" epsilon {row.epsilon:.2f}"
                parts.append(f"{site}{loss}{score}{spent}")
            else:
                parts.append(f"{site} {row.status}")
        if report.round > table.rounds:
            self.say(f"final model   {' | '.join(parts)}")
            return
        left = "" if table.left_s is None else f", {_clock(table.left_s)} left"
        self.say(f"round {report.round}/{table.rounds}   {' | '.join(parts)}   {report.seconds:.1f} s{left}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def stop(self) -> None:
        pass


class Live:
    """A table on a terminal: a row a site, redrawn four times a second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console()
        self._table = _Table()
        self._make = RichLive
        self._live: RichLive | None = None

    def start(self, title: str, sites: Mapping[str, int], rounds: int, metric: str) -> None:
        self.stop()
        rows = {site: _Row(cases) for site, cases in sites.items()}
        self._table = _Table(title, rounds, metric, began=time.monotonic(), rows=rows)
        self._live = self._make(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._live.start()

    def training(self, site: str, step: int, steps: int) -> None:
        row = self._table.rows.get(site)
        if row is not None:
            for other in self._table.rows.values():
                if other.status == "training":
                    other.status = "waiting"
            row.status, row.step, row.steps = "training", step, steps

    def waiting(self, here: Collection[str], awaited: Collection[str], left_s: float | None) -> None:
        self._table.connect(here, awaited, left_s)

    def round(self, report: RoundReport) -> None:
        for line in self._table.update(report):
            self.say(line)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        state = self._table
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        named = state.metric.removeprefix("val/") or "score"
        for name, side in [
            ("site", "left"),
            ("cases", "right"),
            ("", "left"),
            ("loss", "right"),
            (named, "right"),
            ("sent", "right"),
            ("received", "right"),
        ]:
            table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for site, row in sorted(state.rows.items()):
            table.add_row(
                Text(site, style="bold"),
                str(row.cases or ""),
                _status(row),
                _number(row.loss),
                _number(row.score),
                _size(row.bytes_up),
                _size(row.bytes_down),
            )
        left = "" if state.left_s is None else f"   {_clock(state.left_s)} left"
        foot = Table.grid(padding=(0, 2, 0, 0))
        foot.add_row(
            f"round {min(state.done + 1, state.rounds)}/{state.rounds}",
            ProgressBar(total=state.rounds, completed=state.done, width=30),
            f"{_clock(time.monotonic() - state.began)}{left}{state.deadline}",
        )
        return Group(Text(state.title, style="bold"), table, foot, Text(""))


# A word alone is read faster than a symbol whose meaning must be learnt; colour repeats it and
# never replaces it.
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
    return Text(f"{row.status:<19}", style=_STYLES.get(row.status, ""))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B" if count else ""


def _clock(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"


def progress(quiet: bool = False) -> Progress:
    """Return the display that suits where output goes."""
    if quiet:
        return Silent()
    return Live() if sys.stdout.isatty() else Lines()


@contextmanager
def warnings_said(shown: Progress) -> Iterator[None]:
    """Let the display say what medfed's exchange and broker warn of: a lost connection, a full
    disk, a refused message.
    """

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.say(record.getMessage())

    logger, handler = logging.getLogger("medfed"), Said(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
