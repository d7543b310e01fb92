"""The live page's HTML: a view of a run in the words and figures that an operator looks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfed.deployment.live_page.view import View, seconds_of
from medfed.evaluation.report import templates as report_templates
from medfed.evaluation.report.formatting import duration
from medfed.evaluation.report.rounds import curves
from medfed.files import format_bytes
from medfed.runs.status import SiteStatus
from medfed.wire.templates import render

FOLDER = Path(__file__).parent

# How many rounds the curves show, and up to how many sites each panel shows the others' curves too.
MAX_ROUNDS, MAX_COMPARED = 200, 8

# How many warnings the page lists.
MAX_WARNINGS = 20

_BAD = ("refused", "absent", "late", "not connected", "stopped")

# What a life means for whoever looks.
_HEADLINES = {
    "running": "Running: {state}",
    "finished": "Finished",
    "stopped": "Stopped with an error: {reason}",
    "interrupted": "Interrupted by Ctrl-C or SIGTERM",
    "lost": "No sign of life for {silence}: the process died, or its machine is off or asleep",
    "unknown": "Not finished; this run has no status.json, so nobody can tell whether it runs",
}
_CONTINUE = {
    "hub": "The same command with --resume continues after round {round}.",
    "simulation": "The same command with --resume continues after round {round}.",
    "site": "The same command continues after round {round}.",
}


@dataclass(frozen=True)
class SiteRow:
    """One site's line of the table, as text."""

    name: str
    state: str
    bad: bool
    reason: str
    since: str
    seen: str
    round: str
    cases: str
    loss: str
    score: str
    epsilon: str
    up: str
    down: str


def style() -> str:
    """Return the page's style: the report's, and its own."""
    files = (report_templates.FOLDER / "page.css", FOLDER / "live.css")
    return "".join(file.read_text(encoding="utf-8") for file in files)


def script() -> str:
    """Return the script that refreshes the page."""
    return (FOLDER / "live.js").read_text(encoding="utf-8")


def live(view: View) -> str:
    """Return the part of the page that changes."""
    lines = [line for line in view.lines if line.round > view.round - MAX_ROUNDS]
    metric = view.status.metric if isinstance(view.status.metric, str) else ""
    figures = view.run._replace(rounds=lines)
    return render(
        FOLDER / "live.html.jinja",
        view=view,
        title=title(view),
        headline=headline(view),
        detail=" ".join(_detail(view)),
        figures=list(_figures(view)),
        sites=[_row(view, name, one) for name, one in sorted(view.sites.items())],
        metric=metric.removeprefix("val/") or "score",
        private=any(one.epsilon is not None for one in view.sites.values()),
        curves=curves(figures, compared=len(view.sites) <= MAX_COMPARED),
        shortened=MAX_ROUNDS if len(lines) < len(view.lines) else 0,
        most=MAX_WARNINGS,
        privacy=list(_privacy(view)),
        messages=[f"{_clock(one.time)}  {one.text}" for one in reversed(view.status.messages)],
    )


def page(view: View) -> str:
    """Return the whole page."""
    return render(
        FOLDER / "page.html.jinja",
        title=title(view),
        name=view.name,
        has_report=view.has_report,
        live=live(view),
    )


def title(view: View) -> str:
    """Return what a browser's tab shows: the state first, as a tab is narrow."""
    done = f"{view.round}/{view.rounds} " if view.rounds else ""
    alarm = "! " if view.life in ("lost", "stopped") else ""
    return f"{alarm}{done}{view.life} · {view.status.study or view.name}"


def headline(view: View) -> str:
    """Return in a sentence whether the run goes on."""
    silence = "" if view.seen_s is None else duration(view.now_s - view.seen_s)
    reason = view.status.reason if isinstance(view.status.reason, str) else "see its log"
    state = view.status.state
    if state in ("leading", "training") and view.rounds and view.round < view.rounds:
        state = f"round {view.round + 1} of {view.rounds}"
    return _HEADLINES[view.life].format(state=state, reason=reason, silence=silence)


def _detail(view: View) -> Iterator[str]:
    """Yield since when, what is awaited, and how to go on."""
    status = view.status
    if status.since:
        yield f"Since {_time(view, status.since)}."
    if view.life == "running":
        if isinstance(status.awaited, list) and status.awaited:
            yield f"Awaits {', '.join(status.awaited)}."
        if isinstance(status.round_ends_in_s, float):
            ends = duration(max(0.0, status.round_ends_in_s))
            yield f"The round ends in {ends}, without whoever has sent nothing by then."
        yield f"Last step, round or change of state: {_time(view, status.moved)}."
    elif view.life in ("lost", "interrupted", "stopped"):
        if view.life == "lost":
            yield f"Last sign of life {_time(view, status.written)}."
        yield _CONTINUE[status.role].format(round=view.round)


def _figures(view: View) -> Iterator[tuple[str, str]]:
    status = view.status
    if view.rounds:
        yield "rounds merged", f"{view.round} of {view.rounds}"
    if isinstance(status.connected, list):
        yield "sites connected", f"{len(status.connected)} of {len(view.sites)}"
    if isinstance(status.last_round_s, float | int):
        yield "the last round took", duration(status.last_round_s)
    if sent := sum(one.bytes_up for one in view.sites.values()):
        yield "sent by the sites", format_bytes(sent)
    if isinstance(status.last_contact, str):
        yield "last contact with the hub", _ago(view, status.last_contact)
    if isinstance(status.stored_bytes, dict):
        yield "stored at the broker", format_bytes(sum(status.stored_bytes.values()))


def _row(view: View, name: str, one: SiteStatus) -> SiteRow:
    trains = one.state == "training" and one.steps
    share = f" {one.step / one.steps:.0%}" if trains else ""
    cases = one.cases if one.cases is not None else one.examples
    return SiteRow(
        name=name,
        state=f"{one.state}{share}",
        bad=one.state in _BAD,
        reason=one.reason,
        since=_ago(view, one.since),
        seen=_ago(view, one.last_seen),
        round=str(one.round),
        cases="" if cases is None else str(cases),
        loss=_number(one.loss),
        score=_number(one.score),
        epsilon=_number(one.epsilon),
        up=format_bytes(one.bytes_up) if one.bytes_up else "",
        down=format_bytes(one.bytes_down) if one.bytes_down else "",
    )


def _privacy(view: View) -> Iterator[str]:
    """Yield the mechanism, what it promises, and what each site has spent."""
    privacy, settings = view.facts.privacy, view.study.section("privacy")
    yield f"Mechanism: {settings.get('kind') or privacy.kind}"
    yield from privacy.notes
    spent = {site: one.epsilon for site, one in view.sites.items() if one.epsilon is not None}
    if privacy.sites:
        spent = {site: one.epsilon for site, one in privacy.sites.items()}
    of, at = _setting(settings, " of {:g}", "epsilon"), _setting(settings, " at delta {:g}", "delta")
    for site, epsilon in sorted(spent.items()):
        yield f"{site}: epsilon {epsilon:.2f}{of} spent{at}"


def _setting(settings: Mapping[str, Any], words: str, name: str) -> str:
    """Return a number of the study in words; '' if it sets none. YAML reads JSON's 1e-05 as a text."""
    try:
        return words.format(float(settings[name]))
    except (KeyError, TypeError, ValueError):
        return ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _clock(time_utc: str) -> str:
    """Return the date and time of an ISO 8601 time, without its zone, which is UTC everywhere here."""
    return time_utc[:19].replace("T", " ")


def _time(view: View, time_utc: str) -> str:
    seconds = seconds_of(time_utc)
    if seconds is None:
        return "unknown"
    clock = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{clock} UTC ({_ago(view, time_utc)})"


def _ago(view: View, time_utc: str | None) -> str:
    """Return how long ago a time is; of one in the future, that clocks differ."""
    seconds = seconds_of(time_utc)
    if seconds is None:
        return ""
    age = view.now_s - seconds
    return f"{duration(max(0.0, age))} ago" if age > -60 else "in the future: the clocks differ"
