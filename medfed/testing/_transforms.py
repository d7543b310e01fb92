"""The contract of a transform: shape, classes and inputs stay, and what is handed in decides alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medfed.data.image_transforms import Transform
from medfed.testing._contract import OF_EVERY_KIND, Contract

check_transform: Contract[Transform] = Contract("transform", OF_EVERY_KIND)

# A volume (C, X, Y, Z) and a plane (C, X, Y), normalised, each with a label.
SHAPES = ((2, 9, 8, 7), (1, 9, 8))


def example(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return an image and its label of 3 classes, (1, ...)."""
    image = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    return image, (image[:1] > 0.5).astype(np.int64) + (image[:1] > 1.5)


def augmented(
    transform: Transform, shape: tuple[int, ...], seed: int, labelled: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    image, label = example(shape)
    return transform.augmented(image, label if labelled else None, np.random.default_rng(seed))


@check_transform.check
def a_prepared_image_keeps_shape_and_dtype_and_is_finite(transform: Transform) -> None:
    prepared = transform.prepared(example(SHAPES[0])[0])
    assert prepared.shape == SHAPES[0], f"found {prepared.shape}, expected {SHAPES[0]}"
    assert prepared.dtype == np.float32, f"found {prepared.dtype}, expected float32"
    assert np.isfinite(prepared).all()


@check_transform.check
def a_prepared_image_depends_on_the_image_alone(transform: Transform) -> None:
    image = example(SHAPES[0])[0]
    first = np.array(transform.prepared(image))
    np.random.default_rng().random()
    np.testing.assert_array_equal(transform.prepared(image), first)


@check_transform.check
def no_input_is_changed(transform: Transform) -> None:
    image, label = example(SHAPES[0])
    transform.prepared(image)
    for seed in range(8):
        transform.augmented(image, label, np.random.default_rng(seed))
    for found, expected in zip((image, label), example(SHAPES[0]), strict=True):
        np.testing.assert_array_equal(found, expected)


@check_transform.check
def an_augmented_image_keeps_shapes_and_its_label_no_other_classes(transform: Transform) -> None:
    for shape in SHAPES:
        for seed in range(8):
            image, label = augmented(transform, shape, seed)
            assert image.shape == shape, f"found {image.shape}, expected {shape}"
            assert image.dtype == np.float32, f"found {image.dtype}, expected float32"
            assert np.isfinite(image).all()
            assert label is not None, "the label was lost"
            assert label.shape == (1, *shape[1:]), f"found a label of {label.shape}"
            assert np.issubdtype(label.dtype, np.integer), f"found a label of {label.dtype}"
            assert set(np.unique(label)) <= {0, 1, 2}, "the label holds classes that it had not"


@check_transform.check
def an_image_without_a_label_has_none_afterwards(transform: Transform) -> None:
    assert augmented(transform, SHAPES[0], 1, labelled=False)[1] is None


@check_transform.check
def the_generator_that_is_handed_in_decides_alone(transform: Transform) -> None:
    before = _global_state()
    for seed in range(4):
        first, again = augmented(transform, SHAPES[0], seed), augmented(transform, SHAPES[0], seed)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(np.asarray(first[1]), np.asarray(again[1]))
    assert _global_state() == before, "it draws from numpy's global generator"


def _global_state() -> str:
    return repr(np.random.get_state())  # noqa: NPY002 - that which nobody may draw from
