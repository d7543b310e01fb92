"""An audit log for people: one HTML page, or a CSV table for a spreadsheet. The log itself stays the record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import AuditError
from medfed.wire.audit_log import VerifiedLog, entries, verify

# The columns that most lines have; everything else a line holds is in the last one, `more`.
COLUMNS = ("number", "time", "event", "site", "round", "bytes", "sha256", "to", "reason")

# Of the chain and the signatures: checked, and no use to a reader.
_HIDDEN = {"previous", "signature", "certificate"}

# What begins a formula in a spreadsheet; a reason that another site sent must not become one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(log: Path, out: Path) -> VerifiedLog:
    """Write a log that holds to `out`, a page if its name ends in .html and a table if in .csv.

    Raises:
        AuditError: if the log does not hold, or the name ends in neither.
    """
    checked = verify(log)
    rows = [row(entry) for entry in entries(log)]
    if out.suffix == ".csv":
        text = table(rows)
    elif out.suffix == ".html":
        text = page(rows, checked)
    else:
        raise AuditError(f"{out.name}: an audit log is exported to a name that ends in .html or .csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return checked


def row(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return one line of a log as text a column."""
    more = {key: value for key, value in entry.items() if key not in COLUMNS and key not in _HIDDEN}
    told = "; ".join(f"{key}: {_text(value)}" for key, value in more.items())
    return {**{key: _text(entry.get(key, "")) for key in COLUMNS}, "more": told}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return msgspec.json.encode(value).decode() if isinstance(value, (dict, bool)) else str(value)


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the rows as CSV, in which no cell is taken for a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, "more"])
    for one in rows:
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in one.values()])
    return text.getvalue()


def page(rows: list[dict[str, str]], checked: VerifiedLog) -> str:
    """Return one HTML page without scripts: what left in sum, who signed, and every line."""
    import jinja2

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sent = [one for one in rows if one["event"] == "sent"]
    return environment.get_template("audit_report.html.jinja").render(
        rows=rows,
        columns=[*COLUMNS, "more"],
        checked=checked,
        sent=len(sent),
        bytes=sum(int(one["bytes"] or 0) for one in sent),
        refused=sum(one["event"] in ("refused", "withheld") for one in rows),
    )
