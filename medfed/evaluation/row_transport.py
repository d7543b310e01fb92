"""Rows about a hospital's groups of patients as numbers with names, the only form in which
results leave a hospital.

An `Update` carries scalars, floats by name. A row becomes a few of them, named

    row/<split>/<model>/<metric>/<structure>/<group>/<value, low, high or n>

and is made of them again at the hub, which knows by itself whose they are. Notes, methods
and tests stay behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from medfed.errors import DataError
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.rows import FEDERATED, UNTRAINED, Row

# What every such name begins with.
PREFIX = "row/"

# The models of which a hospital reports; its own model's results are its own affair.
MODELS = (FEDERATED, UNTRAINED)
_SPLITS = ("val", "test")
_METRIC = re.compile(r"[a-z0-9_@.]{1,60}")
_FIELDS = ("value", "low", "high", "n")


def scalars_of(rows: Iterable[Row]) -> dict[str, float]:
    """Return the scalars of the rows that may leave; a row that was withheld has no value and stays.

    Survival's Brier scores stay, too: their times are those of a hospital's own patients.

    >>> row = Row(round=3, site="west", split="test", model="federated", metric="dice", value=0.81, n=16)
    >>> sorted(scalars_of([row]).items())
    [('row/test/federated/dice///n', 16.0), ('row/test/federated/dice///value', 0.81)]
    >>> rows_of(scalars_of([row]), 3, "west") == [row]
    True

    Raises:
        DataError: if two rows have one name, so that the hub could not tell them apart.
    """
    found: dict[str, float] = {}
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
        if f"{name}/value" in found:
            raise DataError(
                f"site '{row.site}': two results are called '{name}', and neither may stand for "
                "the other; report on one site and one round, and on perturbed cases separately"
            )
        for field in _FIELDS:
            value = getattr(row, field)
            if value is not None:
                found[f"{name}/{field}"] = float(value)
    return found


def rows_of(scalars: Mapping[str, float], round: int, site: str) -> list[Row]:
    """Return the rows that a site's scalars say; one that says what no site may say, or nothing
    known, is left out.
    """
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in scalars.items():
        parts = name.removeprefix(PREFIX).split("/")
        if name.startswith(PREFIX) and len(parts) == 6 and parts[-1] in _FIELDS:
            found.setdefault(tuple(unquote(part) for part in parts[:-1]), {})[parts[-1]] = value
    rows = []
    for (split, model, metric, structure, group), fields in sorted(found.items()):
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
    """Return the scalars that are not parts of rows: losses and scores of a round."""
    return {name: value for name, value in scalars.items() if not name.startswith(PREFIX)}


def _known(metric: str) -> bool:
    try:
        metric_of(metric)
    except ValueError:
        return False
    return _METRIC.fullmatch(metric) is not None
