"""Conversion of rows to named scalars, the only form in which results leave a hospital.

An `Update` carries scalars: floats by name. Each row becomes up to four of them, named

    row/<split>/<model>/<metric>/<structure>/<group>/<value, low, high or n>

The hub rebuilds the row from them and adds the site, which it knows from the connection; what no honest site
could have measured is refused (`row_checks.py`). Notes, methods and tests are not sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from urllib.parse import quote, unquote

from medfed.errors import DataError
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.row_checks import MODELS, SPLITS, StudyMeasures, row_error
from medfed.evaluation.rows import Row
from medfed.wire.untrusted_text import for_log

# The prefix of all scalars that belong to rows.
PREFIX = "row/"

# The most results that a site may report, and how many refused ones are named, each in so many characters.
MAX_ROWS, MAX_REFUSED, MAX_NAME = 10_000, 10, 120
_FIELDS = ("value", "low", "high", "n")


def scalars_of(rows: Iterable[Row]) -> dict[str, float]:
    """Return the scalars of the rows that may leave the hospital; suppressed rows have no value and stay.

    Brier scores of survival models stay too, because their times come from the hospital's own patients.

    >>> row = Row(round=3, site="west", split="test", model="federated", metric="dice", value=0.81, n=16)
    >>> sorted(scalars_of([row]).items())
    [('row/test/federated/dice///n', 16.0), ('row/test/federated/dice///value', 0.81)]
    >>> accept_rows(scalars_of([row]), 3, "west", max_patients=20, measures=None) == ([row], [])
    True

    Raises:
        DataError: two rows have the same name, so the hub could not distinguish them.
    """
    scalars: dict[str, float] = {}
    for row in rows:
        if (
            row.value is None
            or row.against is not None
            or row.model not in MODELS
            or row.split not in SPLITS
            or not metric_of(row.metric).comparable
        ):
            continue
        name = PREFIX + _joined((row.split, row.model, row.metric, row.structure or "", row.group or ""))
        if f"{name}/value" in scalars:
            raise DataError(
                f"site '{row.site}': two results have the same name '{name}'; "
                "report one site and one round at a time, and perturbed cases separately"
            )
        for field in _FIELDS:
            value = getattr(row, field)
            if value is not None:
                scalars[f"{name}/{field}"] = float(value)
    return scalars


def accept_rows(
    scalars: Mapping[str, float], round: int, site: str, max_patients: int, measures: StudyMeasures | None
) -> tuple[list[Row], list[str]]:
    """Return the rows that a site's scalars describe, and for each one that is refused its name and why.

    `max_patients` is the most patients that the site may have in a split (`row_checks.plausible_patients`),
    `measures` what the study measures; None accepts every known metric.
    """
    rows: list[Row] = []
    refused: list[str] = []
    for name, fields in sorted(_fields_by_row(scalars).items()):
        row = _row(name, fields, round, site)
        why = row if isinstance(row, str) else row_error(row, max_patients, measures)
        if isinstance(row, Row) and why is None and len(rows) < MAX_ROWS:
            rows.append(row)
        else:
            refused.append(f"{for_log(name, MAX_NAME)}: {why or f'more than {MAX_ROWS} results of one site'}")
    more = len(refused) - MAX_REFUSED
    return rows, refused if more <= 0 else [*refused[:MAX_REFUSED], f"and {more} more results"]


def _fields_by_row(scalars: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the numbers of each row, by its name; a name with no field of a row is a row of its own."""
    fields_by_row: dict[str, dict[str, float]] = {}
    for scalar, value in scalars.items():
        if scalar.startswith(PREFIX):
            name, _, field = scalar.removeprefix(PREFIX).rpartition("/")
            fields_by_row.setdefault(name, {})[field] = value
    return fields_by_row


def _row(name: str, fields: Mapping[str, float], round: int, site: str) -> Row | str:
    """Return the row of a name and its numbers, or why there is none."""
    parts = [unquote(part) for part in name.split("/")]
    if len(parts) != 5 or _joined(parts) != name or not set(fields) <= set(_FIELDS):
        return "it has another form than split/model/metric/structure/group with value, low, high and n"
    if not all(isinstance(one, (int, float)) and isfinite(one) for one in fields.values()):
        return "it holds a number that is not finite"
    if "value" not in fields or "n" not in fields or fields["n"] != int(fields["n"]):
        return "it has no value, or no whole number of patients"
    split, model, metric, structure, group = parts
    return Row(
        round=round,
        site=site,
        split=split,
        model=model,
        metric=metric,
        value=fields["value"],
        n=int(fields["n"]),
        low=fields.get("low"),
        high=fields.get("high"),
        structure=structure or None,
        group=group or None,
    )


def without_rows(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the scalars that do not belong to rows, such as the losses and scores of a round."""
    return {name: value for name, value in scalars.items() if not name.startswith(PREFIX)}


def _joined(parts: Iterable[str]) -> str:
    """Return the one way to write these parts as a name: two ways would be two results of one row."""
    return "/".join(quote(part, safe=" @=:") for part in parts)
