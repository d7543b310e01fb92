"""What a hub, a site or a simulation is doing, in one small JSON file, for the live page and for monitors.

The file is replaced as a whole at each change, so a reader never sees half of it, and every few seconds
without one: if it is older than `lost_after_s`, its process died or the machine is off. It holds no patient
data. configs/monitoring/status.schema.json is its JSON schema.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from medfed.errors import DECODING_ERRORS, MedfedError, RunError
from medfed.files import utc_now, write_whole
from medfed.runs.rounds import RoundLine
from medfed.wire.untrusted_text import cleaned, for_log

# The version of the file's fields; files without one, of an earlier medfed, are version 1.
VERSION = 2

# Training steps come fast; the file is written at most this often, except when the state changes.
MIN_INTERVAL_S = 1.0

# How often the file is written although nothing has changed.
HEARTBEAT_S = 5.0

# A process whose file is older than so many heartbeats is lost.
LOST_AFTER_HEARTBEATS = 6

# How many lines of the log the file keeps.
MAX_MESSAGES = 100

# The fields that change only when a process gets on.
MOVES = frozenset({"round", "step"})

# The states in which a process has ended.
FINISHED, STOPPED, INTERRUPTED = "finished", "stopped", "interrupted"
ENDED = (FINISHED, STOPPED, INTERRUPTED)


class SiteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a run knows of one site.

    state: in a word or two, and since when (UTC).  connected: null where all sites are in one process.
    last_seen: when it last gave a sign of life (UTC).  step, steps: of this round's training.  cases: its
    training cases, where the run knows them.  examples: what its last update said.  round: the last one that
    merged its update.  loss, score, epsilon: of its last update.  reason: why its last update is missing.
    """

    state: str = "waiting"
    since: str = ""
    connected: bool | None = None
    last_seen: str | None = None
    step: int = 0
    steps: int = 0
    cases: int | None = None
    examples: int | None = None
    round: int = 0
    loss: float | None = None
    score: float | None = None
    epsilon: float | None = None
    reason: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


def after_line(known: SiteStatus, line: RoundLine, metric: str) -> SiteStatus:
    """Return a site's status after one line of rounds.jsonl; `metric` is the score that is kept."""
    fields: dict[str, Any] = {
        "state": line.status,
        "reason": line.reason,
        "step": 0,
        "steps": 0,
        "bytes_up": known.bytes_up + line.bytes_up,
        "bytes_down": known.bytes_down + line.bytes_received,
    }
    names = {"loss": "train/loss", "score": metric, "epsilon": "privacy/epsilon"}
    fields |= {field: line.scalars[name] for field, name in names.items() if name in line.scalars}
    # A number that stays in its hospital is not that of an earlier round.
    if line.status in ("merged", "reported"):
        fields["score"] = line.scalars.get(metric)
    if line.status == "merged":
        fields["loss"] = line.scalars.get("train/loss")
        fields |= {"round": line.round, "examples": line.examples or known.examples}
    return msgspec.structs.replace(known, **fields)


class Message(msgspec.Struct, frozen=True):
    """A line of the log, and when it was written (UTC)."""

    time: str
    text: str


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The content of status.json; a field that does not apply yet is absent.

    role: whose process it is.  state, since: what it does, and since when (UTC).  reason: why it stopped.
    phase: what is trained now.  round: the last merged one, of `rounds`.  last_round_s: its seconds.
    round_ends_in_s: seconds until the hub goes on without those it awaits; null without a limit.
    step, steps, scores: of a site's own training.  metric: the name of the sites' `score`.  connected,
    awaited: sites, as the hub sees them.  stored_bytes: of the broker's stores.  last_contact: when a site
    last reached the hub (UTC).  messages: the last lines of the log.  process: its number on its machine.
    began, written: when the process began, and when it wrote this file (UTC).  moved: when it last made a
    step, merged a round or changed its state (UTC); a process that hangs goes on writing this file.
    lost_after_s: if `written` is older than so many seconds and the state is none of `finished`, `stopped`
    and `interrupted`, the process died, or its machine is off.
    """

    version: int = VERSION
    role: Literal["hub", "site", "simulation"] = "hub"
    state: str = "starting"
    since: str = ""
    reason: str | UnsetType = UNSET
    study: str | UnsetType = UNSET
    digest: str | UnsetType = UNSET
    phase: str | UnsetType = UNSET
    rounds: int | UnsetType = UNSET
    round: int | UnsetType = UNSET
    last_round_s: float | UnsetType = UNSET
    round_ends_in_s: float | UnsetType | None = UNSET
    step: int | UnsetType = UNSET
    steps: int | UnsetType = UNSET
    scores: dict[str, float | None] | UnsetType = UNSET
    metric: str | UnsetType = UNSET
    connected: list[str] | UnsetType = UNSET
    awaited: list[str] | UnsetType = UNSET
    stored_bytes: dict[str, int] | UnsetType = UNSET
    last_contact: str | UnsetType = UNSET
    sites: dict[str, SiteStatus] = {}
    messages: list[Message] = []
    process: int = 0
    began: str = ""
    moved: str = ""
    written: str = ""
    lost_after_s: float = HEARTBEAT_S * LOST_AFTER_HEARTBEATS

    @property
    def has_ended(self) -> bool:
        """Whether the process says that it has ended."""
        return self.state in ENDED


class Status:
    """The status file of one process. If the disk is full a status is lost, never a round."""

    def __init__(self, path: Path, **fields: Any) -> None:
        now = utc_now()
        self._path, self._lock, self._written_s = path, threading.RLock(), 0.0
        begun = {"since": now, "began": now, "moved": now, "process": os.getpid()}
        self._record = RunStatus(**{**begun, **fields})
        self._write()

    @property
    def record(self) -> RunStatus:
        """What the file says, or will say at the next writing."""
        return self._record

    def update(self, **fields: Any) -> None:
        """Change some of the fields of `RunStatus`."""
        with self._lock:
            changed = fields.get("state", self._record.state) != self._record.state
            if changed:
                fields["since"] = utc_now()
            moved = any(fields[name] != getattr(self._record, name) for name in MOVES & fields.keys())
            if changed or moved:
                fields["moved"] = utc_now()
            self._record = msgspec.structs.replace(self._record, **fields)
            if changed or time.monotonic() - self._written_s >= MIN_INTERVAL_S:
                self._write()

    def site(self, name: str, **fields: Any) -> None:
        """Change some of the fields of a site's `SiteStatus`; a site that is new is added."""
        with self._lock:
            known = self._record.sites.get(name, SiteStatus())
            if fields.get("state", known.state) != known.state or not known.since:
                fields["since"] = utc_now()
            self.update(sites={**self._record.sites, name: msgspec.structs.replace(known, **fields)})

    def take(self, lines: Iterable[RoundLine]) -> None:
        """Add lines of rounds.jsonl to the statuses of their sites."""
        with self._lock:
            metric = self._record.metric or ""
            for line in lines:
                after = after_line(self._record.sites.get(line.site, SiteStatus()), line, metric)
                self.site(line.site, **msgspec.structs.asdict(after))

    def log(self, text: str) -> None:
        """Add a line to the messages."""
        line = Message(utc_now(), for_log(text))
        with self._lock:
            self.update(messages=[*self._record.messages, line][-MAX_MESSAGES:])

    def beat(self) -> None:
        """Write the file although nothing has changed, as a sign of life."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        self._record = msgspec.structs.replace(self._record, written=utc_now())
        plain = cleaned(msgspec.to_builtins(self._record))
        try:
            write_whole(self._path, msgspec.json.format(msgspec.json.encode(plain), indent=2))
        except OSError:
            return


@contextmanager
def keep_status(status: Status) -> Iterator[None]:
    """Write a status every few seconds while the block runs, and how it ended if it failed.

    Raises:
        KeyboardInterrupt: if someone interrupted it; Lightning ends an interrupted process by SystemExit.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            status.beat()

    heart = threading.Thread(target=beat, name="medfed-status", daemon=True)
    heart.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        status.update(state=INTERRUPTED)
        raise KeyboardInterrupt from None
    except BaseException as error:
        # Another library's message may quote a path or a header.
        reason = str(error) if isinstance(error, MedfedError) else type(error).__name__
        status.update(state=STOPPED, reason=reason)
        raise
    finally:
        ended.set()
        heart.join()


def read_status(path: Path) -> RunStatus | None:
    """Return what a status.json says, or None if there is none.

    Raises:
        RunError: if the file is damaged, or of a newer medfed.
    """
    if not path.is_file():
        return None
    try:
        status = msgspec.json.decode(path.read_bytes(), type=RunStatus)
    except DECODING_ERRORS as error:
        raise RunError(f"{path.name}: is damaged or of another medfed: {error}") from None
    if status.version > VERSION:
        raise RunError(
            f"{path.name}: is of version {status.version}, this medfed reads up to {VERSION}; update medfed"
        )
    return status


def status_schema() -> dict[str, Any]:
    """Return the JSON schema of status.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(RunStatus)}
