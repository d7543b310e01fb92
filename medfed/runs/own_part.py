"""What a hospital's own run folder knows of who trained: what this hospital sent, by its own audit log.

Whether an update was merged, and whose else, only the hub's log says. The folder's rounds.jsonl has a line
for each model that the hospital went on from; from it this hospital alone would have trained in every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from medfed.runs.folder import RunFolder
from medfed.runs.rounds import SENT, RoundLine
from medfed.wire.audit_log import entries, verify


class OwnPart(NamedTuple):
    """A hospital's own part in a study, as its audit log has it.

    updates: the rounds whose updates it sent.  lines: its rounds, with what it sent in each, and after the
    last one its results.  names: of the numbers that it sent, results too.
    """

    site: str
    updates: tuple[int, ...]
    lines: list[RoundLine]
    names: frozenset[str]


def own_part(folder: RunFolder, site: str, lines: Iterable[RoundLine]) -> OwnPart:
    """Return what a hospital sent; `lines` are those of its own rounds.jsonl.

    A round is `sent` if the log has an update of it, `not sampled` if the hospital only went on from its
    model, and `reported` if only numbers were sent.

    Raises:
        AuditError: if the log's chain is broken.
    """
    known = {line.round: line for line in lines if line.site == site}
    updates: set[int] = set()
    names: set[str] = set()
    sent: dict[int, RoundLine] = {}
    for entry in _sent(folder, site):
        number, own = int(entry["round"]), [str(name) for name in entry.get("scalars", ())]
        names |= set(own)
        if entry.get("tensors"):
            updates.add(number)
        line = sent.get(number) or known.get(number) or RoundLine(number, site)
        sent[number] = msgspec.structs.replace(
            line,
            status=SENT if number in updates else "reported",
            # What was sent twice, because the site was started again, left twice.
            bytes_up=line.bytes_up + int(entry.get("bytes", 0)),
            examples=int(entry.get("examples", 0)) or line.examples,
        )
    every = {number: _without_update(line) for number, line in known.items()} | sent
    return OwnPart(site, tuple(sorted(updates)), [every[one] for one in sorted(every)], frozenset(names))


def _without_update(line: RoundLine) -> RoundLine:
    return msgspec.structs.replace(line, status="not sampled") if line.status == "merged" else line


def _sent(folder: RunFolder, site: str) -> Iterator[dict[str, Any]]:
    """Yield the log's lines of updates and numbers of this site; none without a log."""
    if not folder.audit.is_file():
        return
    verify(folder.audit)
    for entry in entries(folder.audit):
        if entry.get("event") == "sent" and "what" not in entry and entry.get("site") == site:
            yield entry
