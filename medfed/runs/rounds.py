"""The rounds of a run: what became of each site in each round, in memory and as lines of rounds.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.runs.facts import ModelChoice
from medfed.wire.untrusted_text import for_log

# The status of a site that sent an update, where nobody knows whether it was merged: in its own folder.
SENT = "sent"
# The statuses of a site that trained in a round, as far as the folder shows.
TOOK_PART = ("merged", SENT)

# The statuses of a round in which the model changed. 'evaluated' is written by a site that trains nothing.
_MODEL_CHANGED = (*TOOK_PART, "evaluated")

# The numbers by which a site says how many cases it left out because they cannot be used:
# left_out/<reason>, of a fixed list of reasons. They count files and say nothing of what is in them.
LEFT_OUT = "left_out/"

# The number by which a site says what decides the classes in its labels: 1 for names in its files, 0 for
# numbers that nothing names. It describes the files' format.
LABELS_NAMED = "labels/named"
_LABELS_BY = {1.0: "names", 0.0: "numbers"}

# The number by which a site of a study that leaves images as they are says what measures its own: 1 for mm,
# 0 where no file gives a size.
IMAGES_IN_MM = "images/in_mm"
_UNITS = {1.0: "mm", 0.0: "px"}

# The number by which a site says how many of its results stay there, because they are over too few patients.
WITHHELD = "results/withheld"


def labels_by(number: float | None) -> str:
    """Return what the classes in a site's labels go by, as its `LABELS_NAMED` says: '' if it does not."""
    return "" if number is None else _LABELS_BY.get(number, "")


def unit_by(number: float | None) -> str:
    """Return what measures a site's images, as its `IMAGES_IN_MM` says: '' if it does not."""
    return "" if number is None else _UNITS.get(number, "")


@dataclass(frozen=True)
class SiteResult:
    """What became of one site in one round.

    `reason` says why an update is missing, `notes` what else a person should know of one. Both may quote the
    site, so they are kept as text for a log.
    """

    site: str
    status: str  # merged, refused, absent, late, not sampled, reported, evaluated
    reason: str = ""
    examples: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    scalars: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", for_log(self.reason))
        object.__setattr__(self, "notes", tuple(map(for_log, self.notes)))


@dataclass(frozen=True)
class RoundReport:
    """One finished round: its number, every site's result, its duration and the bytes sent to each site.

    `scored` is the round whose model the results are scores of, if they hold nothing else; `final` says that
    it is the study's final one, and `choice` how that was chosen.
    """

    round: int
    results: tuple[SiteResult, ...]
    seconds: float
    bytes_down: int
    scored: int | None = None
    final: bool = False
    choice: ModelChoice | None = None


class RoundLine(msgspec.Struct, frozen=True):
    """One line of rounds.jsonl: one site in one round. Fields that an older run lacks are None or 0."""

    round: int
    site: str
    status: str = ""
    reason: str = ""
    examples: int | None = None
    seconds: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    scalars: dict[str, float | None] = {}
    notes: list[str] = []

    @property
    def bytes_received(self) -> int:
        """The bytes that the site has surely received, in a line of an earlier version, too."""
        return received_bytes(self.status, self.bytes_down)


def received_bytes(status: str, model_bytes: int) -> int:
    """Return the bytes that a site has surely received: none if it was not asked, or did not answer."""
    return 0 if status in ("not sampled", "absent") else model_bytes


def lines_of(report: RoundReport) -> list[RoundLine]:
    """Return a round as the lines of rounds.jsonl, one per site."""
    return [
        RoundLine(
            round=report.round,
            site=result.site,
            status=result.status,
            reason=result.reason,
            examples=result.examples,
            seconds=round(result.seconds, 3),
            bytes_up=result.bytes_up,
            bytes_down=received_bytes(result.status, report.bytes_down),
            scalars=dict(result.scalars),
            notes=list(result.notes),
        )
        for result in report.results
    ]


def append_round(path: Path, report: RoundReport) -> None:
    """Append one line per site to rounds.jsonl.

    A resumed run may append a round again; `read_rounds` takes the later line.
    """
    with path.open("ab") as file:
        file.write(encode_rounds(lines_of(report)))


def encode_rounds(lines: Iterable[RoundLine]) -> bytes:
    """Return lines as the content of a rounds.jsonl."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def read_rounds(path: Path) -> list[RoundLine]:
    """Return the lines of rounds.jsonl by round and site, the last of each; none if there is no such file.

    Raises:
        RunError: if a complete line is not the line of a round.
    """
    if not path.is_file():
        return []
    latest: dict[tuple[int, str], RoundLine] = {}
    # Whatever follows the last newline was cut off when the process was killed.
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = msgspec.json.decode(text, type=RoundLine)
        except DECODING_ERRORS as error:
            raise RunError(f"{path.name}: line {number} is not a round: {error}; restore the file") from error
        latest[line.round, line.site] = line
    return [latest[key] for key in sorted(latest)]


def consecutive_rounds(runs: Iterable[Sequence[RoundLine]]) -> list[RoundLine]:
    """Return the rounds of several runs, such as the folds of a study, numbered on from one to the next."""
    lines: list[RoundLine] = []
    for one in runs:
        before = max((line.round for line in lines), default=0)
        lines += [msgspec.structs.replace(line, round=before + line.round) for line in one]
    return lines


def last_round(lines: Iterable[RoundLine]) -> int:
    """Return the last round that changed the model, 0 if none did; lines after it only report scores."""
    return max((line.round for line in lines if line.status in _MODEL_CHANGED), default=0)


def first_examples(lines: Iterable[RoundLine]) -> dict[str, int]:
    """Return the number of examples that each site stated first in a run, without those that stated none."""
    examples: dict[str, int] = {}
    for line in lines:
        if line.examples:
            examples.setdefault(line.site, line.examples)
    return examples
