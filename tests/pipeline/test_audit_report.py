"""An audit log as a page and as a table: every line is there, and nothing of another site runs."""

from __future__ import annotations

import csv
import io

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import AuditError
from medfed.pipeline.audit_report import COLUMNS, by_site, export_log, row, table
from medfed.wire.audit_log import AuditLog, verify


def test_an_export_is_readable_and_runs_nothing(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write("sent", site="north", round=1, bytes=1200, sha256="ab", to="hub", scalars=["val/dice"])
    log.write("refused", site="=HYPERLINK(1)", round=1, reason="<script>alert(1)</script>")
    export_log(path, tmp_path / "audit.csv")
    first, second = csv.DictReader(io.StringIO((tmp_path / "audit.csv").read_text()))
    assert (first["bytes"], first["to"], first["more"]) == ("1200", "hub", "scalars: val/dice")
    assert second["site"] == "'=HYPERLINK(1)"
    result = CliRunner().invoke(main, ["audit", "export", str(path), "--out", str(tmp_path / "audit.html")])
    assert result.exit_code == 0
    page = (tmp_path / "audit.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "1 messages, 1,200 bytes" in page
    assert page.index("Each hospital") < page.index("Every line")
    assert '<th scope="row">north</th><td>1</td><td>1.2 kB</td>' in page
    assert verify(path).head in page
    with pytest.raises(AuditError, match=r"ends in \.html or \.csv"):
        export_log(path, tmp_path / "audit.pdf")
    path.write_bytes(path.read_bytes().replace(b"1200", b"1201"))
    with pytest.raises(AuditError, match="line 2: does not continue"):
        export_log(path, tmp_path / "audit.csv")


def test_each_hospital_has_a_summary():
    """North was merged in rounds 1 and 2 and late in 3; the log is of both sides, so bytes stand twice."""
    lines = [
        {"event": "began", "sites": ["north"], "time": "2026-01-01T09:00:00"},
        {"event": "received", "site": "north", "round": 1, "time": "2026-01-01T09:00:01"},
        {"event": "sent", "site": "north", "round": 1, "bytes": 1000, "time": "2026-01-01T09:00:02"},
        {"event": "merged", "site": "north", "round": 1, "bytes": 1000, "time": "2026-01-01T09:00:03"},
        {"event": "sent", "site": "north", "round": 2, "bytes": 500, "time": "2026-01-01T09:00:04"},
        {"event": "merged", "site": "north", "round": 2, "bytes": 500, "time": "2026-01-01T09:00:05"},
        {"event": "late", "site": "north", "round": 3, "bytes": 0, "time": "2026-01-01T09:00:06"},
        {"event": "refused", "site": "east", "round": 1, "bytes": 70, "time": "2026-01-01T09:00:07"},
    ]
    east, north = by_site(lines)
    assert (north.site, north.rounds, north.bytes) == ("north", 2, 1500)
    assert list(north.counts.values()) == [2, 1, 2, 1, 0, 0]
    assert (north.first, north.last) == ("2026-01-01T09:00:01", "2026-01-01T09:00:06")
    assert (east.rounds, east.bytes, east.counts["refused or withheld"]) == (0, 70, 1)


def test_a_row_has_every_column_and_the_rest_of_the_line_together():
    entry = {"number": 3, "event": "sent", "previous": "ab", "signature": "cd", "certificate": "ef",
             "scalars": ["a", "b"], "late": True, "sizes": {"x": 1}}  # fmt: skip
    made = row(entry)
    assert list(made) == [*COLUMNS, "more"]
    assert (made["number"], made["event"], made["site"]) == ("3", "sent", "")
    assert made["more"] == 'scalars: a, b; late: true; sizes: {"x":1}'


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_no_cell_begins_a_formula(start):
    _, line = csv.reader(io.StringIO(table([row({"reason": f"{start}1+1"})]), newline=""))
    assert line[COLUMNS.index("reason")] == f"'{start}1+1"


@pytest.mark.parametrize("start, shown", [("\t", "\\t"), ("\r", "\\r")])
def test_a_cell_that_begins_with_a_control_character_shows_it(start, shown):
    _, line = csv.reader(io.StringIO(table([row({"reason": f"{start}=1+1"})]), newline=""))
    assert line[COLUMNS.index("reason")] == f"{shown}=1+1"


def test_the_page_counts_bytes_sent_and_refusals(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for event, size in (
        ("sent", 1000),
        ("sent", 500),
        ("received", 9000),
        ("refused", None),
        ("withheld", None),
    ):
        log.write(event, site="north", **({} if size is None else {"bytes": size}))
    assert export_log(path, tmp_path / "audit.html") == verify(path)
    page = (tmp_path / "audit.html").read_text()
    assert "2 messages, 1,500 bytes" in page
    assert page.count("<tr") == 5 + 1 + 2  # the summary has a head and north
