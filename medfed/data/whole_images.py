"""What a study asks of the sizes of a site's images: those that a network sees whole, and those without mm.

With `data.patch: null` a network sees each image as it is prepared, so that its size decides whether the
network can learn from it; with a patch the study alone decides. `medfed check` and training share these
functions, and both ask before the first round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from medfed.data import planes
from medfed.data.case import Case
from medfed.data.refusals import UnsuitableSizeError
from medfed.data.settings import Images
from medfed.data.transforms import Prepared, prepared_shape
from medfed.data.volume import Volume
from medfed.errors import DataError, StudyError

# Raises a StudyError for an image size (X, Y, Z), or (X, Y) in 2D, that the study's network cannot take.
CheckSize = Callable[[tuple[int, ...]], None]


@dataclass(frozen=True)
class Extent:
    """The size (X, Y, Z), or (X, Y) in 2D, of a prepared image, and whether its file gives no size in mm."""

    size: tuple[int, ...]
    in_pixels: bool = False


def extent_of(image: Volume, settings: Images) -> Extent:
    """Return the extent that an image has once it is prepared."""
    return Extent(prepared_shape(image, settings), planes.in_pixels(image))


def prepared_extent(prepared: Prepared, settings: Images) -> Extent:
    """Return the extent of a prepared image."""
    return Extent(prepared.image.shape[1:][: settings.spatial_dims], prepared.in_pixels)


def check_whole_size(extent: Extent, settings: Images, check_size: CheckSize | None) -> None:
    """Raise if the network sees whole images and cannot learn from one of this size.

    Raises:
        UnsuitableSizeError: with the network's own words.
    """
    if settings.patch is not None or check_size is None:
        return
    try:
        check_size(extent.size)
    except StudyError as error:
        raise UnsuitableSizeError(
            "the study sets no data.patch, so that the network sees the whole image, whose size does not "
            f"suit it: {error}; set data.patch, or resample to other sizes by data.spacing_mm"
        ) from None


def check_extents(
    cases: Iterable[Case],
    extents: Mapping[str, Extent],
    settings: Images,
    batch: int = 1,
    training: Collection[str] = ("train",),
) -> None:
    """Raise if images that are learnt from cannot be put into one batch, or not onto one scale.

    `extents` are by token; a case without one is passed over.  `training` are the splits that train.

    Raises:
        DataError: if training images of one batch differ in size, or some have a size in mm, some have none,
            and the study scales none of them.
    """
    known = [(case.split, extents[case.token]) for case in cases if case.token in extents]
    sizes = {extent.size for split, extent in known if split in training}
    if settings.patch is None and batch > 1 and len(sizes) > 1:
        raise DataError(
            f"the prepared training images have {len(sizes)} different sizes, and the study puts whole "
            f"images into batches of {batch}; set data.patch, or train.batch to 1"
        )
    without_mm = sum(extent.in_pixels for _, extent in known)
    if settings.spacing_mm == "native" and 0 < without_mm < len(known):
        raise DataError(
            f"{without_mm} of {len(known)} images have no size in mm and the others have one, and the study "
            f"takes all as they are (data.spacing_mm: native), so that bodies differ in scale; {_CURE}"
        )


_CURE = "set data.spacing_mm to fit, which scales each image into the patch, or leave out one of the kinds"


def unit_of(extents: Iterable[Extent], settings: Images) -> str:
    """Return what measures images that a study leaves as they are: 'mm', or 'px' where no file gives a size.

    '' where it does not count: to `fit` a patch no size in mm is needed, and a spacing in mm refuses images
    without one.
    """
    without_mm = [extent.in_pixels for extent in extents]
    if settings.spacing_mm != "native" or not without_mm:
        return ""
    return "px" if all(without_mm) else "mm"


def different_units(units: Mapping[str, str]) -> str:
    """Return why the images of sites may differ in scale; '' if that is excluded.

    `units` is `unit_of` each site's images.
    """
    in_mm, in_px = (sorted(site for site, unit in units.items() if unit == word) for word in ("mm", "px"))
    if not in_mm or not in_px:
        return ""
    return (
        f"the images of {', '.join(in_px)} have no size in mm and those of {', '.join(in_mm)} have one, and "
        f"the study takes all as they are (data.spacing_mm: native), so that bodies differ in scale; {_CURE}"
    )
