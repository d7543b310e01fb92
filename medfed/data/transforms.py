"""From a case's files to a network's input: a deterministic part and a random part.

`prepare` is the first part (orientation, spacing, intensities) and can be cached; `sample_patch` is the
second (a patch or a crop, then augmentation). Both use MONAI's transforms, except for resampling
(`resample.py`). The voxels enter as arrays with an affine, so that MONAI's metadata holds no path, name or
header, and no path can get into a checkpoint or a log.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from medfed.data import planes
from medfed.data.image_transforms._transform import augment_all, prepare_all
from medfed.data.label_regions import class_dtype
from medfed.data.resample import resample
from medfed.data.settings import PATIENT_AXES, Augment, Images
from medfed.data.volume import PICTURE, Volume
from medfed.errors import DataError, ImageError

if TYPE_CHECKING:
    from monai.transforms import Compose
    from torch import Tensor

_Array = NDArray[Any]
_T = TypeVar("_T", bound=np.generic)

# At most this many labelled voxels of a volume are kept as possible centres of patches; more would not
# change a draw.
MAX_CENTRES = 20_000
# Of these, at least so many of each class that has them: a small lesion beside a large organ is not lost.
MIN_CENTRES_OF_CLASS = 500

# The most voxels that a resampled volume may have. With more, the spacing or the affine is wrong.
MAX_VOXELS = 1024**3

# A spacing that differs by less than this fraction is the study's: resampling to it would only blur.
SPACING_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class Prepared:
    """One case, oriented, resampled and normalised.

    image: (C, X, Y, Z) float32.  label: (1, X, Y, Z) integer, or None.  centres: (N, 3) int32, labelled
    voxels that patches may be centred on.  affine_ras: of this grid.  original_shape, original_affine_ras: of
    the files' grid, to which `restore` brings a prediction back.  in_pixels: the files give no size in mm,
    and both affines count pixels.  moved: `label`, `channels` if these were on another grid.
    """

    image: NDArray[np.float32]
    label: NDArray[np.integer[Any]] | None
    centres: NDArray[np.int32]
    affine_ras: NDArray[np.float64]
    original_shape: tuple[int, int, int]
    original_affine_ras: NDArray[np.float64]
    in_pixels: bool = False
    moved: tuple[str, ...] = ()


def prepare(image: Volume, label: Volume | None, settings: Images) -> Prepared:
    """Return a case oriented and resampled as the study says, its intensities normalised.

    The image is interpolated linearly, the label by its nearest neighbour. NaN becomes the volume's smallest
    value.

    Raises:
        ImageError: if no voxel is a number, or the resampled volume would be too large.
    """
    check_preparable(image, settings)
    array = image.array
    if not np.isfinite(array).all():
        finite = array[np.isfinite(array)]
        array = np.nan_to_num(
            array, nan=float(finite.min()), posinf=float(finite.max()), neginf=float(finite.min())
        )
    mask = None if label is None else _as_integers(label.array)
    oriented, affine_ras = array, image.affine_ras
    if settings.axes is not None:
        oriented, affine_ras = _oriented(array, image.affine_ras, settings.axes)
        mask = None if mask is None else _oriented(mask, image.affine_ras, settings.axes)[0]
    grid = _study_grid(image, oriented.shape[1:], affine_ras, settings)
    if grid is not None:
        to_affine, to_shape = grid
        if settings.spatial_dims == 2:
            oriented = planes.scaled(oriented, to_shape)
        else:
            oriented = resample(oriented, affine_ras, to_affine, to_shape, nearest=False)
        mask = None if mask is None else resample(mask, affine_ras, to_affine, to_shape, nearest=True)
        affine_ras = to_affine
    return Prepared(
        image=np.ascontiguousarray(_normalised(np.ascontiguousarray(oriented), settings), np.float32),
        label=None if mask is None else np.ascontiguousarray(mask),
        centres=_centres(mask),
        affine_ras=affine_ras,
        original_shape=image.shape,
        original_affine_ras=image.affine_ras,
        in_pixels=planes.in_pixels(image),
    )


def _normalised(array: NDArray[np.float32], settings: Images) -> NDArray[np.float32]:
    return prepare_all(settings.transforms, settings.normalise.image(array))


def _as_integers(label: _Array) -> NDArray[np.integer[Any]]:
    """Return class numbers as integers, in a type that holds the highest of them."""
    if np.issubdtype(label.dtype, np.integer):
        return label
    return label.astype(class_dtype(int(label.max(initial=0))))


def check_plane(image: Volume, settings: Images) -> None:
    """Raise an ImageError if an image can't be one of a 2D study.

    Raises:
        ImageError: if it has several slices and the study names none.
    """
    if settings.slices is None and image.shape[2] != 1:
        raise ImageError(
            f"the image has {image.shape[2]} slices, and a study with data.spatial_dims: 2 takes images of "
            "one plane; set data.slices to axial, coronal or sagittal, or data.spatial_dims to 3"
        )


def _study_grid(
    image: Volume, shape: tuple[int, ...], affine_ras: NDArray[np.float64], settings: Images
) -> tuple[NDArray[np.float64], tuple[int, int, int]] | None:
    """Return affine and shape of an oriented image's new grid; None if it keeps its own."""
    if settings.spatial_dims == 2:
        return planes.study_grid(shape, affine_ras, settings)
    if not isinstance(settings.spacing_mm, tuple) or _has_study_spacing(settings, image):
        return None
    return _resampled_grid(shape, affine_ras, settings.spacing_mm)


def prepared_shape(image: Volume, settings: Images) -> tuple[int, ...]:
    """Return the size (X, Y, Z), or (X, Y) in 2D, that an image has once it is prepared."""
    shape, affine_ras = image.shape, image.affine_ras
    if settings.axes is not None:
        shape, affine_ras = _oriented_grid(shape, affine_ras, settings.axes)
    grid = _study_grid(image, shape, affine_ras, settings)
    return (shape if grid is None else grid[1])[: settings.spatial_dims]


def _oriented_grid(
    shape: tuple[int, int, int], affine_ras: NDArray[np.float64], orientation: str
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return shape and affine of a grid whose axes are turned into an orientation such as RAS."""
    from nibabel import orientations

    own = orientations.io_orientation(affine_ras)  # type: ignore[no-untyped-call]  # nibabel is untyped
    wanted = orientations.axcodes2ornt(orientation)  # type: ignore[no-untyped-call]
    turn = orientations.ornt_transform(own, wanted)  # type: ignore[no-untyped-call]
    back = orientations.inv_ornt_aff(turn, shape)  # type: ignore[no-untyped-call]
    sides = {int(to): side for (to, _), side in zip(turn, shape, strict=True)}
    return _triple(sides[axis] for axis in range(3)), np.asarray(affine_ras @ back, np.float64)


def check_preparable(image: Volume, settings: Images) -> None:
    """Raise if an image that can be read cannot be prepared.

    Raises:
        ImageError: if no voxel is a number, the image is none of a 2D study, it has no size in mm and the
            study a spacing, or the resampled volume would be too large.
    """
    # Nearly always the first row has a number: then the other voxels need not be looked at.
    if not np.isfinite(image.array[:, 0, :, 0]).any() and not np.isfinite(image.array).any():
        raise ImageError("no voxel of the image is a number")
    if settings.spatial_dims == 2:
        check_plane(image, settings)
    elif PICTURE in image.info.flags:
        raise ImageError(
            "a picture without a place in the patient, like one of a screen, and the study takes volumes "
            "(data.spatial_dims: 3); leave it out, or set data.spatial_dims to 2"
        )
    if not isinstance(settings.spacing_mm, tuple):
        return
    if planes.in_pixels(image):
        remedy = "it to fit or native" if settings.spatial_dims == 2 else "data.spatial_dims to 2"
        raise ImageError(
            f"the image has no size in mm, and the study resamples to data.spacing_mm; set {remedy}"
        )
    extent = np.multiply(image.shape, image.spacing_mm)
    if settings.spatial_dims == 2:  # the distance of slices stays
        across = planes.axis_across(image, settings)
        extent = np.delete(extent, across)
        voxels = image.shape[across] * np.prod(extent) / np.prod(settings.spacing_mm)
    else:
        voxels = np.prod(extent) / np.prod(settings.spacing_mm)
    if voxels > MAX_VOXELS:
        raise ImageError(
            f"an image of {' x '.join(f'{side:.0f}' for side in extent)} mm has {voxels:.1e} voxels "
            "at the study's spacing; "
            "raise data.spacing_mm or correct the image's affine"
        )


def _oriented(
    array: _Array, affine_ras: NDArray[np.float64], orientation: str
) -> tuple[_Array, NDArray[np.float64]]:
    """Return an array (C, X, Y, Z) in an orientation such as RAS, and its affine."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    # With labels=None MONAI takes the letters from the tensor's own space, and a MetaTensor's is RAS.
    orient = Orientation(axcodes=orientation, labels=None)
    whole = torch.as_tensor(np.ascontiguousarray(array))
    oriented: Any = orient(MetaTensor(whole, affine=torch.as_tensor(affine_ras, dtype=torch.float64)))
    return oriented.as_tensor().numpy(), np.asarray(oriented.affine, np.float64)


def _resampled_grid(
    shape: tuple[int, ...], affine_ras: NDArray[np.float64], spacing_mm: tuple[float, ...]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape of the grid that MONAI's `Spacing` resamples another grid to."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    # Lazy: it computes the grid and resamples nothing.
    empty = MetaTensor(
        torch.empty(1).expand(1, *shape), affine=torch.as_tensor(affine_ras, dtype=torch.float64)
    )
    planned: Any = Spacing(spacing_mm, dtype=np.float32, lazy=True)(empty)
    x, y, z = (int(size) for size in planned.peek_pending_shape())
    return np.asarray(planned.peek_pending_affine(), np.float64), (x, y, z)


def _has_study_spacing(settings: Images, image: Volume) -> bool:
    """Whether the image has the study's spacing, in whatever order its axes are stored."""
    import nibabel as nib

    if not isinstance(settings.spacing_mm, tuple):
        return True
    letters = nib.aff2axcodes(image.affine_ras)  # type: ignore[no-untyped-call]  # nibabel is untyped
    own = dict(zip(map(_axis_of, letters), image.spacing_mm, strict=True))
    wanted = dict(zip(map(_axis_of, settings.orientation), settings.spacing_mm, strict=True))
    return all(abs(own[axis] / wanted[axis] - 1) < SPACING_TOLERANCE for axis in wanted)


def _axis_of(letter: str) -> str:
    """Return the patient's axis, x, y or z, along which a letter of an orientation points."""
    return PATIENT_AXES[letter]


def _centres(label: NDArray[np.integer[Any]] | None) -> NDArray[np.int32]:
    """Return about MAX_CENTRES labelled voxels, (N, 3), evenly spread over those of each class."""
    if label is None:
        return np.zeros((0, 3), np.int32)
    flat = np.flatnonzero(label[0])
    if len(flat) > MAX_CENTRES:
        classes, share = label[0].reshape(-1)[flat], MAX_CENTRES / len(flat)
        flat = np.sort(np.concatenate([_spread(flat[classes == one], share) for one in np.unique(classes)]))
    return np.stack(np.unravel_index(flat, label.shape[1:]), -1).astype(np.int32)


def _spread(voxels: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Return a share of one class's voxels, evenly spread, at least MIN_CENTRES_OF_CLASS if it has them."""
    count = min(len(voxels), max(int(len(voxels) * share), MIN_CENTRES_OF_CLASS))
    return voxels[np.linspace(0, len(voxels) - 1, count).astype(np.int64)]


def restore(array: _Array, prepared: Prepared, *, nearest: bool) -> _Array:
    """Return an array (K, X, Y, Z) of the prepared grid on the grid of the case's own files.

    `nearest` is for class numbers; probabilities are interpolated linearly. Outside the prepared grid the
    border's values are repeated.
    """
    if array.shape[1:] != prepared.image.shape[1:]:
        raise DataError(
            f"a prediction has shape {array.shape[1:]}, its prepared image {prepared.image.shape[1:]}"
        )
    back = resample(
        array, prepared.affine_ras, prepared.original_affine_ras, prepared.original_shape, nearest=nearest
    )
    return back.astype(array.dtype, copy=False)


# --- the random part ----------------------------------------------------------------------------------------


def place_patch(
    shape: tuple[int, ...],
    centres: NDArray[np.int32],
    patch: tuple[int, ...],
    foreground: float,
    random: np.random.Generator,
) -> tuple[int, int, int]:
    """Return the start of a patch: around a labelled voxel with probability `foreground`, else anywhere.

    An axis shorter than the patch starts at 0; `crop_padded` fills up the rest.
    """
    slack = [max(size - want, 0) for size, want in zip(shape, patch, strict=True)]
    # Three numbers are drawn either way, so that what follows does not depend on whether there is a label.
    chance, choice, fractions = random.random(), random.random(), random.random(3)
    if len(centres) and chance < foreground:
        # Uniform about the centre, not exactly at it: a network that always sees lesions in the middle learns
        # the middle.
        centre = centres[int(choice * len(centres))]
        starts = [int(c) - int(p * want) for c, p, want in zip(centre, fractions, patch, strict=True)]
        return _triple(min(max(start, 0), most) for start, most in zip(starts, slack, strict=True))
    return _triple(int(p * (most + 1)) for p, most in zip(fractions, slack, strict=True))


def centres_of_one_class(
    label: NDArray[np.integer[Any]], centres: NDArray[np.int32], random: np.random.Generator
) -> NDArray[np.int32]:
    """Return those of the centres (N, 3) that are of one class of the label (1, X, Y, Z), each as likely."""
    if not len(centres):
        return centres
    classes = label[0][tuple(centres.T)]
    drawn: NDArray[np.int32] = centres[classes == random.choice(np.unique(classes))]
    return drawn


def _triple(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z


def crop_padded(
    array: NDArray[_T], start: tuple[int, int, int], patch: tuple[int, ...], fill: float | None = None
) -> NDArray[_T]:
    """Return (C, *patch) from `start`; a volume shorter than the patch is centred in `fill`.

    By default `fill` is the volume's smallest value.
    """
    part = array[(slice(None), *(slice(s, s + want) for s, want in zip(start, patch, strict=True)))]
    if part.shape[1:] == patch:
        return np.ascontiguousarray(part)
    whole = np.full((part.shape[0], *patch), array.min() if fill is None else fill, part.dtype)
    offset = [(want - size) // 2 for size, want in zip(part.shape[1:], patch, strict=True)]
    whole[(slice(None), *(slice(o, o + size) for o, size in zip(offset, part.shape[1:], strict=True)))] = part
    return whole


def centre_crop(array: NDArray[_T], patch: tuple[int, ...]) -> NDArray[_T]:
    """Return the middle of a volume, (C, *patch), padded with its smallest value if it is shorter."""
    start = _triple(max(size - want, 0) // 2 for size, want in zip(array.shape[1:], patch, strict=True))
    return crop_padded(array, start, patch)


def whole_input(image: NDArray[np.float32], settings: Images) -> NDArray[np.float32]:
    """Return a prepared image (C, X, Y, Z) as a classifier sees it, cropped or padded to the patch.

    In 2D without its last axis: (C, X, Y).
    """
    if settings.spatial_dims == 2:
        return centre_crop(image, (*settings.patch, 1))[..., 0] if settings.patch else image[..., 0]
    return image if settings.patch is None else centre_crop(image, settings.patch)


def random_patch(image: NDArray[np.float32], settings: Images, seed: int) -> NDArray[np.float32]:
    """Return the study's patch (C, *patch) of an image without a label, anywhere in it as `seed` decides.

    In 2D it is of one slice: (C, X, Y, 1). A study without a patch gets the whole image, or a whole slice.
    """
    patch = settings.patch
    if settings.spatial_dims == 2:
        patch = (*(patch or image.shape[1:3]), 1)
    if patch is None:
        return image
    nowhere = np.zeros((0, 3), np.int32)
    start = place_patch(image.shape[1:], nowhere, patch, 0.0, np.random.default_rng(seed))
    return crop_padded(image, start, patch)


def augmentation(augment: Augment | Literal["none"], labelled: bool, axes: str) -> Compose | None:
    """Return MONAI's random transforms for training images of these axes (RAS, or RA in 2D), or None."""
    if augment == "none":
        return None
    import monai.transforms as mt

    keys = ["image", "label"] if labelled else ["image"]
    steps: list[Any] = []
    if augment.rotate and (augment.rotate_deg or augment.scale):
        steps.append(_random_affine(augment, keys, len(axes)))
    names = [_axis_of(letter) for letter in axes]
    flipped = [names.index(name) for name in augment.flip_axes if name in names]
    for axis in flipped if augment.flip else ():
        steps.append(mt.RandFlipd(keys, prob=augment.flip, spatial_axis=axis))
    if augment.blur:
        steps.append(mt.RandGaussianSmoothd(["image"], (0.25, 1), (0.25, 1), (0.25, 1), prob=augment.blur))
    if augment.intensity:
        steps.append(mt.RandScaleIntensityd(["image"], factors=0.1, prob=augment.intensity))
        steps.append(mt.RandShiftIntensityd(["image"], offsets=0.1, prob=augment.intensity))
    if augment.noise:
        sd = augment.noise_sd
        steps.append(mt.RandGaussianNoised(["image"], prob=augment.noise, std=sd, sample_std=False))
    return mt.Compose(steps)


def _random_affine(augment: Augment, keys: list[str], dims: int) -> Any:
    from monai.transforms import RandAffined

    # A plane turns about one axis, a volume about three.
    return RandAffined(
        keys,
        prob=augment.rotate,
        rotate_range=(float(np.deg2rad(augment.rotate_deg)),) * (3 if dims == 3 else 1),
        scale_range=(augment.scale,) * dims,
        mode=["bilinear", "nearest"][: len(keys)],
        padding_mode="border",
        cache_grid=False,
    )


def sample_patch(
    image: NDArray[np.float32],
    label: NDArray[np.integer[Any]] | None,
    centres: NDArray[np.int32],
    settings: Images,
    augment: Compose | None,
    seed: int,
    *,
    owned: bool = False,
) -> dict[str, Tensor]:
    """Return a training image (C, ...) float32 and its label (1, ...) int64, cropped and augmented by `seed`.

    The image is a copy, unless nobody else holds it (`owned`). Without a label it is cropped to its middle.
    In 2D a label's patch is part of one slice, which holds a labelled voxel with probability
    `data.foreground`, and both are (C, X, Y).
    """
    import torch

    patch = settings.patch
    if settings.spatial_dims == 2:
        patch = (*(patch or image.shape[1:3]), 1)
    if label is None:
        image = whole_input(image, settings)
    elif patch is not None:
        random = np.random.default_rng(seed)
        if settings.balance == "classes":
            centres = centres_of_one_class(label, centres, np.random.default_rng([seed, 0]))
        start = place_patch(image.shape[1:], centres, patch, settings.foreground, random)
        image, label = crop_padded(image, start, patch), crop_padded(label, start, patch, 0)
        if settings.spatial_dims == 2:
            image, label = image[..., 0], label[..., 0]
    data: dict[Hashable, Any] = {
        "image": torch.from_numpy(np.array(image, np.float32, copy=None if owned else True))
    }
    if label is not None:
        data["label"] = torch.from_numpy(label.astype(np.float32))
    if augment is not None:
        augment.set_random_state(seed % 2**32)
        data = augment(data)
    return _own_augmented(tensors(data), settings, seed)


def _own_augmented(data: dict[str, Tensor], settings: Images, seed: int) -> dict[str, Tensor]:
    """Return a training image and its label after the study's own transforms."""
    import torch

    if not settings.transforms:
        return data
    label = data["label"].numpy() if "label" in data else None
    # A stream of its own: the patch is drawn from `seed`.
    random = np.random.default_rng([seed, len(settings.transforms)])
    image, label = augment_all(settings.transforms, data["image"].numpy(), label, random)
    changed = {"image": torch.from_numpy(np.ascontiguousarray(image))}
    if label is not None:
        changed["label"] = torch.from_numpy(np.ascontiguousarray(label))
    return {**data, **changed}


def tensors(data: Mapping[Hashable, Any]) -> dict[str, Tensor]:
    """Return plain tensors without MONAI's metadata; labels become int64."""
    import torch
    from monai.data import MetaTensor

    plain_tensors = {}
    for key, value in data.items():
        plain = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
        plain_tensors[str(key)] = plain.long() if key == "label" else plain.float()
    return plain_tensors
