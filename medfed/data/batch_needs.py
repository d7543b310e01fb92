"""What a task needs in a batch, as the data modules see it; `medfed.models.tasks` describes the batches."""

from __future__ import annotations

from typing import Literal

# Labels, one target or several, images alone, or rows of a table.
Needs = Literal["segment", "classify", "multilabel", "image", "table", "survival"]

# Those that are made of images, and of them those in which an image is classified as a whole.
IMAGE_NEEDS = ("segment", "classify", "multilabel", "image")
WHOLE_IMAGE_NEEDS = ("classify", "multilabel")
# Those that train on patches drawn at random, and validate on whole images, one at a time.
PATCH_NEEDS = ("segment", "image")
