"""The draft of `data.table`: the columns of tables beside images that all hospitals have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from medfed.data.case_table import FILES, WHERE, with_table
from medfed.data.index import index_folder
from medfed.data.layouts import Layout
from medfed.data.patients import DEFAULT_COLUMN, patients_of
from medfed.data.settings import CaseTable, of_case_table
from medfed.data.site_table import open_table
from medfed.data.splits import simulated_secret
from medfed.errors import DataError
from medfed.pipeline._draft import DRAFT_SEED, yaml_inline
from medfed.pipeline._draft_tables import SPLIT, DraftColumns, add_column


def case_table_lines(
    folders: Mapping[str, Path], answers: Collection[str], layout: Layout | None = None
) -> tuple[str, list[str]]:
    """Return the lines of `data.table`, and what a person should check; no line without such tables.

    It is proposed where every hospital's folder has a table of a usual name (`FILES`) whose rows name cases
    of the folder. `answers` are the classes, which are never learned from.

    Raises:
        DataError: if such a table can't be read.
    """
    found = {
        site: [folder / name for name in FILES if (folder / name).is_file()]
        for site, folder in folders.items()
    }
    if not all(len(paths) == 1 for paths in found.values()):
        return "", []
    tables = {site: open_table(paths[0], where=f"{site}: {WHERE}") for site, paths in found.items()}
    first = next(iter(tables.values()))
    predicted = {"target", SPLIT, *(name.lower() for name in answers)}
    patients = {site: patients_of(one.columns, one.lines, DEFAULT_COLUMN)[0] for site, one in tables.items()}
    columns = DraftColumns()
    for name in first.columns:
        if name not in predicted and all(name in one.columns for one in tables.values()):
            add_column(name, tables, patients, columns)
    warnings = [of_case_table(warning) for warning in columns.warnings]
    if not columns.features:
        return "", warnings
    if refusals := _refusals(folders, _settings(columns), layout):
        return "", [*refusals, "so no table beside the images is proposed"]
    lines = ["  table:                        # of each hospital, beside its images"]
    lines.append(f"    features: {yaml_inline(columns.features)}")
    lines += ["    categorical:"] if columns.categories else []
    for name, held in columns.categories.items():
        lines.append(f"      {yaml_inline([name])[1:-1]}: {yaml_inline(held)}")
    return "\n".join(lines) + "\n", warnings


def _settings(columns: DraftColumns) -> CaseTable:
    words = {name: tuple(held) for name, held in columns.categories.items()}
    return CaseTable(features=tuple(columns.features), categorical=words)


def _refusals(folders: Mapping[str, Path], settings: CaseTable, layout: Layout | None) -> list[str]:
    """Return why hospitals' rows cannot be used, as training would refuse them."""
    refusals = []
    for site, folder in folders.items():
        secret = simulated_secret(DRAFT_SEED, site)
        try:
            with_table(index_folder(folder, site_secret=secret, layout=layout), settings)
        except DataError as error:
            refusals.append(f"{site}: {error}")
    return refusals
