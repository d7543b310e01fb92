"""Classification of whole images into two or more classes."""

from __future__ import annotations

from medfed.models.tasks._task import ClassificationTask


class Classify(ClassificationTask, tag="classify", frozen=True):
    """Classification of whole images into one of the classes, the healthy one first."""

    needs = "classify"
    source = "image"
