"""What changes an image after its normalisation (`data.transforms`): one file per kind, named after it.

To add one, write `data/image_transforms/<name>.py` with a `Transform` record tagged `<name>`, or put it into
a plug-in; `medfed.testing.check_transform` is its contract.
"""

from medfed.data.image_transforms._transform import Labels, Transform, Voxels

__all__ = ["Labels", "Transform", "Voxels"]
