"""What the batches of a task hold; tasks, networks and losses say which of these they need or serve."""

from __future__ import annotations

from typing import Literal

# `medfed.models.tasks` describes the batches.
Needs = Literal["segment", "classify", "multilabel", "image", "table", "survival"]
