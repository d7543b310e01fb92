"""The network that a study describes, before any of its weights are loaded, frozen or adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.data.settings import Images
from medfed.study.study import Study

if TYPE_CHECKING:
    from torch import nn

    from medfed.models.networks import Network

# Stands for a patch that is not planned yet: large enough for the levels of any network.
UNPLANNED_PATCH = (512, 512, 512)


def network_for(study: Study) -> Network:
    """Return the record of a study's network for its images: with their axes, voxel size and patch.

    Before a study's data are planned (`data.plan`), a network that follows from them is not known yet, and
    the one of cubic voxels stands for it: none has more parameters.

    Raises:
        StudyError: if it does not suit the images.
    """
    from medfed.models.networks import for_images_of

    data = study.data
    record = for_images_of(study.network, getattr(data, "spatial_dims", 3))
    if not isinstance(data, Images):
        return record
    if data.plan != "given":
        return record.fitted((1.0,) * data.spatial_dims, UNPLANNED_PATCH[: data.spatial_dims])
    return record.fitted(data.spacing_mm if isinstance(data.spacing_mm, tuple) else None, data.patch)


def untrained_network(study: Study) -> nn.Module:
    """Return the study's network, with weights from torch's random state.

    Raises:
        StudyError: if it does not suit the images, or cannot learn from the table beside them.
    """
    data, record = study.data, network_for(study)
    outputs = study.task.outputs_of(data.inputs)
    network = record.build(data.inputs, outputs, getattr(data, "patch", None))
    if isinstance(data, Images) and data.table is not None:
        from medfed.models.networks._image_and_table import with_columns

        return with_columns(network, record, len(data.table.input_names), data.table.hidden, outputs)
    return network
