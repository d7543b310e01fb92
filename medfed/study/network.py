"""The network that a study describes, before any of its weights are loaded, frozen or adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.data.settings import Images
from medfed.study.study import Study

if TYPE_CHECKING:
    from torch import nn


def untrained_network(study: Study) -> nn.Module:
    """Return the study's network, with weights from torch's random state.

    Raises:
        StudyError: if it does not suit the images, or cannot learn from the table beside them.
    """
    from medfed.models.networks import for_images_of

    data, outputs = study.data, study.task.outputs
    record = for_images_of(study.network, getattr(data, "spatial_dims", 3))
    network = record.build(data.inputs, outputs, getattr(data, "patch", None))
    if isinstance(data, Images) and data.table is not None:
        from medfed.models.networks._image_and_table import with_columns

        return with_columns(network, record, len(data.table.input_names), data.table.hidden, outputs)
    return network
