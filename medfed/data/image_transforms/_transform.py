"""The contract of a transform: a frozen record with a part for every image and a random part for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

from medfed.errors import ImageError
from medfed.registry import Kind, kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Strings, as a study is read without numpy.
Voxels: TypeAlias = "NDArray[np.float32]"
Labels: TypeAlias = "NDArray[np.int64]"


class Transform(Kind, frozen=True):
    """A change of images after their normalisation; a subclass has one of the two methods, or both."""

    folder: ClassVar[str] = "transforms"

    def prepared(self, image: Voxels) -> Voxels:
        """Return a whole image (C, X, Y, Z) float32, changed in training and prediction alike.

        Its shape stays and the input is not changed. The result depends on the image alone, since it is kept
        in caches.
        """
        return image

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        """Return a training image and its label, randomly changed; both are (C, X, Y, Z), in 2D (C, X, Y).

        Shapes and the label's classes stay, the inputs are not changed, and `random` alone decides.
        """
        return image, label

    @property
    def prepares(self) -> bool:
        """Whether it changes images in prediction, too."""
        return type(self).prepared is not Transform.prepared


def prepare_all(transforms: tuple[Transform, ...], image: Voxels) -> Voxels:
    """Return an image after every transform's part for all images.

    Raises:
        ImageError: naming a transform that broke its contract.
    """
    for transform in transforms:
        image = _same_shape(transform, image, transform.prepared(image))
    return image


def augment_all(
    transforms: tuple[Transform, ...], image: Voxels, label: Labels | None, random: np.random.Generator
) -> tuple[Voxels, Labels | None]:
    """Return a training image and its label after every transform's random part.

    Raises:
        ImageError: as `prepare_all`.
    """
    import numpy as np

    for transform in transforms:
        changed, changed_label = transform.augmented(image, label, random)
        image = _same_shape(transform, image, changed)
        if label is not None:
            if changed_label is None or changed_label.shape != label.shape:
                found = None if changed_label is None else changed_label.shape
                raise ImageError(
                    f"data.transforms: '{kind_of(transform)}' returned a label of shape {found}, expected "
                    f"{label.shape}; correct its `augmented`"
                )
            label = np.asarray(changed_label, np.int64)
    return image, label


def _same_shape(transform: Transform, before: Voxels, after: Voxels) -> Voxels:
    import numpy as np

    array = np.asarray(after, np.float32)
    if array.shape != before.shape or not np.isfinite(array).all():
        found = f"shape {array.shape}" if array.shape != before.shape else "numbers that are not finite"
        raise ImageError(
            f"data.transforms: '{kind_of(transform)}' returned {found}, expected finite numbers of shape "
            f"{before.shape}; correct it"
        )
    return array
