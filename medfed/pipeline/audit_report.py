"""An audit log for people, as an HTML page or a CSV table; the log itself remains the record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import AuditError
from medfed.files import write_whole
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
    rows = [row(entry) for entry in entries(log)]
    if out.suffix == ".csv":
        text = table(rows)
    elif out.suffix == ".html":
        text = page(rows, checked)
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


def page(rows: list[dict[str, str]], checked: VerifiedLog) -> str:
    """Return an HTML page without scripts: totals, who signed, and every line."""
    sent = [one for one in rows if one["event"] == "sent"]
    return render(
        Path(__file__).with_name("audit_report.html.jinja"),
        rows=rows,
        columns=[*COLUMNS, "more"],
        checked=checked,
        sent=len(sent),
        bytes=sum(int(one["bytes"] or 0) for one in sent),
        refused=sum(one["event"] in ("refused", "withheld") for one in rows),
    )
