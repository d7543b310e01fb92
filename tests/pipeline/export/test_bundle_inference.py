"""inference.json of a bundle: MONAI's transforms with the study's own numbers, or a refusal."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medfed.data.normalise.fingerprint import FederatedFingerprint
from medfed.data.normalise.none import NoNormalisation
from medfed.data.normalise.percentile import Percentile
from medfed.data.normalise.window import Window
from medfed.data.normalise.zscore import ZScore
from medfed.data.settings import Images
from medfed.errors import RunError
from medfed.models.tasks.classify import Classify
from medfed.models.tasks.segment import Segment
from medfed.pipeline.export._bundle_inference import CROP, PAD, inference

SEGMENT = Segment(classes=("background", "lesion"))
CLASSIFY = Classify(classes=("healthy", "ill"))
IMAGES = Images(spacing_mm=(1.0, 2.0, 3.0), patch=(4, 5, 6), orientation="PIR")


def config(settings: Images = IMAGES, task=SEGMENT) -> dict:
    return inference(SimpleNamespace(study=SimpleNamespace(task=task)), settings)


def steps(settings: Images) -> dict[str, dict]:
    return {step.pop("_target_"): step for step in config(settings)["preprocessing"]["transforms"]}


def changed(**values) -> Images:
    return Images(**{"spacing_mm": (1.0, 2.0, 3.0), "patch": (4, 5, 6), **values})


def test_an_image_is_turned_and_resampled_as_in_training() -> None:
    transforms = steps(IMAGES)
    assert list(transforms)[:3] == ["LoadImaged", "Orientationd", "Spacingd"]
    assert transforms["Orientationd"] == {"keys": "image", "axcodes": "PIR", "labels": None}
    assert transforms["Spacingd"]["pixdim"] == [1.0, 2.0, 3.0]
    assert config()["patch"] == [4, 5, 6]
    assert "Spacingd" not in steps(changed(spacing_mm="native"))


@pytest.mark.parametrize(
    ("normalise", "target", "numbers"),
    [
        (Percentile(low=1, high=98), "ScaleIntensityRangePercentilesd",
         {"lower": 1, "upper": 98, "b_min": -1, "b_max": 1, "clip": True, "channel_wise": True}),
        (Window(low=-100, high=300), "ScaleIntensityRanged",
         {"a_min": -100, "a_max": 300, "b_min": -1, "b_max": 1, "clip": True}),
        # (-100 - 50) / 100 and (250 - 50) / 100.
        (FederatedFingerprint(low=-100, high=250, mean=50, sd=100), "ScaleIntensityRanged",
         {"a_min": -100, "a_max": 250, "b_min": -1.5, "b_max": 2, "clip": True}),
        (ZScore(foreground=False, clip=None), "NormalizeIntensityd", {"channel_wise": True}),
    ],
)  # fmt: skip
def test_each_normalisation_has_its_equal(normalise, target: str, numbers: dict) -> None:
    transforms = steps(changed(normalise=normalise))
    assert list(transforms)[3:] == [target]
    assert {name: transforms[target][name] for name in numbers} == numbers


def test_no_normalisation_is_no_step() -> None:
    assert list(steps(changed(normalise=NoNormalisation())))[3:] == []


@pytest.mark.parametrize(
    ("settings", "task", "words"),
    [
        (
            Images(spatial_dims=2, spacing_mm="fit", patch=(4, 4)),
            SEGMENT,
            "its transforms read volumes, and data",
        ),
        (changed(channels=2), SEGMENT, "it cannot read images of several files"),
        (
            changed(normalise=ZScore(foreground=True)),
            CLASSIFY,
            r"data\.normalise 'zscore' with these settings",
        ),
        (changed(normalise=ZScore(clip=3.0)), CLASSIFY, r"data\.normalise 'zscore' with these settings"),
        (
            IMAGES,
            Segment(classes=("background", "lesion"), minimum_voxels=3),
            r"task\.largest and task\.minimum",
        ),
    ],
)
def test_what_monai_cannot_do_alike_is_refused(settings: Images, task, words: str) -> None:
    with pytest.raises(RunError, match=rf"^export to a MONAI bundle: {words}"):
        config(settings, task)


def test_a_segmentation_needs_a_patch_and_stores_numbers_in_few_bytes() -> None:
    with pytest.raises(RunError, match=r"^export to a MONAI bundle is for segmentation in patches"):
        config(changed(patch=None))
    many = Segment(classes=tuple(f"c{n}" for n in range(257)))
    for task, stored in ((SEGMENT, "$'uint8'"), (many, "$'int32'")):
        (saver,) = [
            step
            for step in config(task=task)["postprocessing"]["transforms"]
            if step["_target_"] == "SaveImaged"
        ]
        assert saver["output_dtype"] == stored


def test_crop_and_pad_leave_the_patch_in_the_middle() -> None:
    """The lambdas of inference.json, evaluated: 7 voxels cut to 4 from the second, 3 filled up to 5."""

    def evaluated(text: str):
        return eval(re.sub("@patch", "patch", text.removeprefix("$")), {"torch": torch, "patch": [4, 5]})

    image = torch.arange(21.0).reshape(1, 7, 3)
    cut = evaluated(CROP)(image)
    np.testing.assert_array_equal(cut, image[:, 1:5])
    padded = evaluated(PAD)(cut, -1.0)
    assert padded.shape == (1, 4, 5)
    np.testing.assert_array_equal(padded[:, :, 1:4], cut)
    assert (padded[:, :, [0, 4]] == -1).all()
