"""What a run folder says of its run now: running, ended or lost, its sites, rounds, privacy and warnings.

Everything is read from status.json, run.json, rounds.jsonl and study.json; nothing in the folder is changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from medfed.errors import MedfedError, RunError
from medfed.evaluation.report.formatting import round_ranges
from medfed.evaluation.report.run import Run
from medfed.evaluation.summarise import PublicStudy, read_public_study, read_run_facts
from medfed.files import is_plain_file, read_plain
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import RoundLine, last_round, read_rounds
from medfed.runs.status import RunStatus, SiteStatus, after_line, read_status

# `lost`: the process died or its machine is off.  `unknown`: an earlier medfed wrote no status of such a run.
Life = Literal["running", "finished", "stopped", "interrupted", "lost", "unknown"]

# The statuses of a site whose update is missing from a round.
_MISSING = ("refused", "absent", "late")

_T = TypeVar("_T")


class Concern(msgspec.Struct, frozen=True):
    """What is not as it should be: of which site ('' for the run), in which rounds, and why."""

    site: str
    text: str
    rounds: str = ""


@dataclass(frozen=True)
class View:
    """A run as its folder shows it at one moment.

    name: of the folder.  now_s, seen_s: seconds since 1970 of the moment, and of the status's last writing.
    unreadable: the files that cannot be read, each with its error.
    """

    name: str
    now_s: float
    life: Life
    seen_s: float | None
    status: RunStatus
    facts: RunFacts
    study: PublicStudy
    lines: list[RoundLine]
    sites: Mapping[str, SiteStatus]
    warnings: list[Concern]
    consent: str
    has_report: bool
    unreadable: list[str]

    @property
    def run(self) -> Run:
        """The run for the report's figures, without rows."""
        return Run(self.facts, self.study, [], self.lines, [], None)

    @property
    def round(self) -> int:
        """The last merged round."""
        known = self.status.round
        return max(known if isinstance(known, int) else 0, last_round(self.lines))

    @property
    def rounds(self) -> int | None:
        """How many rounds the study has, if known."""
        known = self.status.rounds
        planned = known if isinstance(known, int) else self.study.section("train").get("rounds")
        return planned if isinstance(planned, int) else None


def read_view(path: Path, now_s: float | None = None) -> View:
    """Return what a run folder says now; a damaged file is told and does not hide the others.

    A file that is a link is told and not read: somebody else may have made the folder, and the page may be
    shown to more people than may read the file that the link names.

    Raises:
        RunError: if there is no run folder at this path.
    """
    folder, unreadable = RunFolder(path), list[str]()
    if not (folder.status.is_file() or folder.facts.is_file()):
        raise RunError(
            f"{path.name}: no run folder: it has neither {folder.status.name} nor {folder.facts.name}; give "
            "the folder of --out, or runs/NAME"
        )

    def read(function: Callable[[Path], _T], file: Path, missing: _T) -> _T:
        try:
            if file.is_symlink():
                raise RunError(f"{file.name}: is a link, which is not followed; put the file itself there")
            return function(file)
        except (MedfedError, OSError) as error:
            unreadable.append(_read_error(error, file).replace(f"{path}/", ""))
            return missing

    now = time.time() if now_s is None else now_s
    status = read(read_status, folder.status, None)
    facts = read(lambda file: read_run_facts(file.parent), folder.facts, RunFacts())
    lines = read(_lines, folder.rounds, list[RoundLine]())
    public = folder.public_study if folder.public_study.is_file() else folder.study
    study = read(lambda file: read_public_study(file.parent), public, PublicStudy({}))
    life, seen_s = _life(status, facts, now)
    known = status or RunStatus(state="", study=facts.study, digest=facts.digest)
    metric = known.metric if isinstance(known.metric, str) else ""
    return View(
        name=path.resolve().name,
        now_s=now,
        life=life,
        seen_s=seen_s,
        status=known,
        facts=facts,
        study=study,
        lines=lines,
        sites=known.sites or _sites(lines, facts, metric),
        warnings=list(_warnings(lines, facts)),
        consent=read(_text, folder.consent, ""),
        has_report=is_plain_file(folder.report),
        unreadable=unreadable,
    )


def _read_error(error: MedfedError | OSError, file: Path) -> str:
    """Return why a file cannot be read."""
    return str(error) if isinstance(error, MedfedError) else f"{file.name}: cannot be read: {error.strerror}"


def _text(path: Path) -> str:
    return read_plain(path).decode(errors="replace") if path.is_file() else ""


def _lines(path: Path) -> list[RoundLine]:
    if not path.is_file():
        return []
    state = path.stat()
    return _cached_lines(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _cached_lines(path: Path, changed_ns: int, size: int) -> list[RoundLine]:
    """Return the lines of a rounds.jsonl that was changed then and is this long."""
    return read_rounds(path)


def seconds_of(time_utc: str | None) -> float | None:
    """Return an ISO 8601 time as seconds since 1970; None if it is none.

    >>> seconds_of("1970-01-01T00:01:00+00:00")
    60.0
    """
    try:
        seconds = datetime.fromisoformat(time_utc or "").timestamp()
        datetime.fromtimestamp(seconds, UTC)  # in another zone the year may be one that there is not
    except (ValueError, OverflowError):
        return None
    return seconds


def _life(status: RunStatus | None, facts: RunFacts, now_s: float) -> tuple[Life, float | None]:
    """Return whether a run goes on, has ended or is lost, and when its process last wrote its status."""
    seen_s = None if status is None else seconds_of(status.written)
    if status is None or seen_s is None:
        return ("finished" if facts.is_finished else "unknown"), seen_s
    if status.has_ended:
        return status.state, seen_s  # type: ignore[return-value]  # one of ENDED
    if now_s - seen_s <= status.lost_after_s:
        return "running", seen_s
    return ("finished" if facts.is_finished else "lost"), seen_s


def _sites(lines: Iterable[RoundLine], facts: RunFacts, metric: str) -> dict[str, SiteStatus]:
    """Return what the rounds say of each site, for a run without a status of them."""
    sites = {site: SiteStatus(state="") for site in sorted({*facts.sites, *facts.held_out})}
    for line in lines:
        sites[line.site] = after_line(sites.get(line.site, SiteStatus()), line, metric)
    return sites


def _warnings(lines: Iterable[RoundLine], facts: RunFacts) -> Iterable[Concern]:
    """Yield what is missing or odd, the newest round first, then what the run's facts warn of."""
    found: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        texts = list(line.notes)
        if line.status in _MISSING:
            # Without the round, so that what holds in many rounds is one line.
            reason = line.reason.removeprefix(f"site '{line.site}', round {line.round}: ")
            texts.append(f"{line.status}: {reason}" if reason else line.status)
        for text in texts:
            found.setdefault((line.site, text), []).append(line.round)
    for (site, text), rounds in sorted(found.items(), key=lambda item: -item[1][-1]):
        yield Concern(site, text, round_ranges(rounds))
    by_site: Mapping[str, Any] = {**facts.warnings}
    for site, texts in by_site.items():
        yield from (Concern(site, text) for text in texts)
    for site, text in facts.unmeasured.items():
        yield Concern(site, f"not measured: {text}")
    for model, text in facts.missing_models.items():
        yield Concern("", f"no model '{model}': {text}")


def summary(view: View) -> dict[str, Any]:
    """Return a view as plain values: whether the run goes on, its warnings, and its status."""
    return {
        "run": view.name,
        "life": view.life,
        "round": view.round,
        "rounds": view.rounds,
        "warnings": msgspec.to_builtins(view.warnings),
        "unreadable": view.unreadable,
        "status": {**msgspec.to_builtins(view.status), "sites": msgspec.to_builtins(dict(view.sites))},
    }
