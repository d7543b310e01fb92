"""What a preflight says of the table beside a hospital's images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medfed.data.case_table import count_matched
from medfed.data.index import Index
from medfed.data.preflight.issues import Finding
from medfed.data.preflight.listing import Listing
from medfed.data.preflight.study_checks import StudyRequirements


def table_findings(index: Index | None, listing: Listing) -> Iterator[Finding]:
    """Yield each case whose row cannot be used, what is odd about the columns, and notes on the reading."""
    if index is None or index.rows is None:
        return
    for name, case in zip(listing.names, listing.cases, strict=True):
        refusal = index.rows.refused.get(case.token)
        if refusal is not None:
            yield Finding("table_row", name, str(refusal).partition(": ")[2])
    for warning in index.rows.warnings:
        yield Finding("table_column", "", warning)
    yield from (Finding("note", "", note) for note in index.rows.notes)


def table_facts(index: Index | None, requirements: StudyRequirements | None) -> dict[str, Any]:
    """Return the columns that the study learns from, and how many cases have a row."""
    settings = requirements.settings.table if requirements is not None else None
    if settings is None or index is None or index.rows is None:
        return {}
    return {"table": {"columns": list(settings.features), **count_matched(index.rows)}}
