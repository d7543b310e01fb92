"""Conversion of rows to named scalars, the only form in which results leave a hospital.

An `Update` carries scalars: floats by name. Each row becomes up to four of them, named

    row/<split>/<model>/<metric>/<structure>/<group>/<value, low, high or n>

The hub rebuilds the row from them and adds the site, which it knows from the connection. Notes, methods and
tests are not sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from medfed.errors import DataError
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.rows import FEDERATED, UNTRAINED, Row

# The prefix of all scalars that belong to rows.
PREFIX = "row/"

# The models whose results a hospital sends; results of its own local model stay in the hospital.
MODELS = (FEDERATED, UNTRAINED)
_SPLITS = ("val", "test")
_METRIC = re.compile(r"[a-z0-9_@.]{1,60}")
_FIELDS = ("value", "low", "high", "n")


def scalars_of(rows: Iterable[Row]) -> dict[str, float]:
    """Return the scalars of the rows that may leave the hospital; suppressed rows have no value and stay.

    Brier scores of survival models stay too, because their times come from the hospital's own patients.

    >>> row = Row(round=3, site="west", split="test", model="federated", metric="dice", value=0.81, n=16)
    >>> sorted(scalars_of([row]).items())
    [('row/test/federated/dice///n', 16.0), ('row/test/federated/dice///value', 0.81)]
    >>> rows_of(scalars_of([row]), 3, "west") == [row]
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
            or row.split not in _SPLITS
            or not metric_of(row.metric).comparable
        ):
            continue
        parts = (row.split, row.model, row.metric, row.structure or "", row.group or "")
        name = PREFIX + "/".join(quote(part, safe=" @=:") for part in parts)
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


def rows_of(scalars: Mapping[str, float], round: int, site: str) -> list[Row]:
    """Return the rows that a site's scalars describe.

    Rows with a split or model that sites may not report, an unknown metric, or no value are dropped.
    """
    fields_by_row: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in scalars.items():
        parts = name.removeprefix(PREFIX).split("/")
        if name.startswith(PREFIX) and len(parts) == 6 and parts[-1] in _FIELDS:
            fields_by_row.setdefault(tuple(unquote(part) for part in parts[:-1]), {})[parts[-1]] = value
    rows = []
    for (split, model, metric, structure, group), fields in sorted(fields_by_row.items()):
        if split not in _SPLITS or model not in MODELS or "value" not in fields or not _known(metric):
            continue
        rows.append(
            Row(
                round=round,
                site=site,
                split=split,
                model=model,
                metric=metric,
                value=fields["value"],
                n=int(fields["n"]) if "n" in fields else None,
                low=fields.get("low"),
                high=fields.get("high"),
                structure=structure or None,
                group=group or None,
            )
        )
    return rows


def without_rows(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the scalars that do not belong to rows, such as the losses and scores of a round."""
    return {name: value for name, value in scalars.items() if not name.startswith(PREFIX)}


def _known(metric: str) -> bool:
    try:
        metric_of(metric)
    except ValueError:
        return False
    return _METRIC.fullmatch(metric) is not None
