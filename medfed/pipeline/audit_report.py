"""An audit log for people, as an HTML page or a CSV table; the log itself remains the record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from medfed.errors import AuditError
from medfed.files import format_bytes, write_whole
from medfed.wire.audit_log import VerifiedLog, entries, verify
from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_cell

# The columns that most lines have; everything else is in the last column, `more`.
COLUMNS = ("number", "time", "event", "site", "round", "bytes", "sha256", "to", "reason")

# Fields of the chain and the signatures, which are checked and of no use to a reader.
_HIDDEN = {"previous", "signature", "certificate"}


def export_log(log: Path, out: Path) -> VerifiedLog:
    """Write a verified log to `out`: a page if the name ends in .html, a table if it ends in .csv.

    Raises:
        AuditError: if the log is not intact, or the name ends in neither.
    """
    checked = verify(log)
    lines = list(entries(log))
    rows = [row(entry) for entry in lines]
    if out.suffix == ".csv":
        text = table(rows)
    elif out.suffix == ".html":
        text = page(rows, checked, by_site(lines))
    else:
        raise AuditError(f"{out.name}: an audit log is exported to a file whose name ends in .html or .csv")
    write_whole(out, text)
    return checked


def row(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return one line of a log as one text per column."""
    more = {key: value for key, value in entry.items() if key not in COLUMNS and key not in _HIDDEN}
    others = "; ".join(f"{key}: {_text(value)}" for key, value in more.items())
    return {**{key: _text(entry.get(key, "")) for key in COLUMNS}, "more": others}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return msgspec.json.encode(value).decode() if isinstance(value, (dict, bool)) else str(value)


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the rows as CSV in which a spreadsheet takes no cell for a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, "more"])
    for one in rows:
        writer.writerow([for_cell(cell) for cell in one.values()])
    return text.getvalue()


# What a line of a hospital may be about, as columns of the summary: the events that each counts.
SUMMARY = {
    "sent": ("sent",),
    "received": ("received",),
    "merged": ("merged",),
    "absent or late": ("absent", "late"),
    "refused or withheld": (
        "refused",
        "withheld",
        "declined",
        "study refused",
        "hub refused",
        "message refused",
    ),
    "warnings": ("warning", "kept", "data changed", "similar results", "repaired"),
}


class SiteSummary(NamedTuple):
    """What a log says of one hospital: its rounds, lines by column of `SUMMARY`, bytes sent, and when."""

    site: str
    rounds: int
    counts: Mapping[str, int]
    bytes: int
    first: str
    last: str


def by_site(log_entries: Iterable[Mapping[str, Any]]) -> list[SiteSummary]:
    """Return a summary of each hospital that lines of a log are about, by name.

    A line that names no `site`, such as the merge of a round, is of nobody's alone. The bytes are those of
    what the hospital sent, which a hub's log has in the line of the update's outcome.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for entry in log_entries:
        if entry.get("site"):
            lines.setdefault(str(entry["site"]), []).append(entry)
    return [_summary(site, some) for site, some in sorted(lines.items())]


def _summary(site: str, lines: list[Mapping[str, Any]]) -> SiteSummary:
    events = [str(line.get("event", "")) for line in lines]
    sent = [line for line in lines if line.get("event") == "sent"]
    # A simulation's log is of both sides, and has the same bytes twice.
    sized = sent or [line for line in lines if line.get("event") != "received"]
    times = sorted(str(line["time"]) for line in lines if line.get("time"))
    took_part = {str(line.get("round", "")) for line in lines if line.get("event") in ("sent", "merged")}
    return SiteSummary(
        site=site,
        rounds=len(took_part - {""}),  # a fingerprint is sent before the first round
        counts={name: sum(event in which for event in events) for name, which in SUMMARY.items()},
        bytes=sum(int(line.get("bytes") or 0) for line in sized),
        first=times[0] if times else "",
        last=times[-1] if times else "",
    )


def page(rows: list[dict[str, str]], checked: VerifiedLog, sites: list[SiteSummary]) -> str:
    """Return an HTML page without scripts: totals, who signed, a summary per hospital, and every line."""
    sent = [one for one in rows if one["event"] == "sent"]
    return render(
        Path(__file__).with_name("audit_report.html.jinja"),
        rows=rows,
        sites=sites,
        summary=list(SUMMARY),
        format_bytes=format_bytes,
        columns=[*COLUMNS, "more"],
        checked=checked,
        sent=len(sent),
        bytes=sum(int(one["bytes"] or 0) for one in sent),
        refused=sum(one["event"] in ("refused", "withheld") for one in rows),
    )
