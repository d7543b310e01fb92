"""Classification of rows of a table, such as disease prediction from laboratory values."""

from __future__ import annotations

from medfed.models.tasks._task import ClassificationTask


class Tabular(ClassificationTask, tag="tabular", frozen=True):
    """Classification of rows of a table into one of the classes, the healthy one first."""

    needs = "table"
    source = "features"
