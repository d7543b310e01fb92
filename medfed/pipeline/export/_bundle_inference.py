"""The inference of a MONAI Bundle, as MONAI's own transforms: from a folder of NIfTI images to what a
model says of them.
"""

from __future__ import annotations

from typing import Any

from medfed.data.normalise import Normalise
from medfed.data.normalise.fingerprint import FederatedFingerprint
from medfed.data.normalise.none import NoNormalisation
from medfed.data.normalise.percentile import Percentile
from medfed.data.normalise.window import Window
from medfed.data.normalise.zscore import ZScore
from medfed.data.settings import Images
from medfed.errors import RunError
from medfed.pipeline.export._subject import Subject
from medfed.registry import kind_of


def inference(subject: Subject, settings: Images) -> dict[str, Any]:
    """Return inference.json: from a folder of NIfTI images to masks on their own grids,
    or to their probabilities.

    Raises:
        RunError: if MONAI has no equal for how images are prepared or masks finished.
    """
    if settings.channels > 1:
        raise RunError(
            "export to a MONAI bundle: images of several files are not read by it; export to onnx or "
            "torchscript"
        )
    common = {
        "imports": ["$import glob", "$import os", "$import monai", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/found'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "patch": list(settings.patch or ()),
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": "$@bundle_root + '/models/model.ts'",
            "map_location": "@device",
        },
        "network": "$@network_def.eval()",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(settings)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @images]",
            "transform": "@preprocessing",
        },
    }
    return common | (
        _segmentation(subject, settings)
        if subject.study.task.needs == "segment"
        else _classification(settings)
    )


def _segmentation(subject: Subject, settings: Images) -> dict[str, Any]:
    task: Any = subject.study.task
    if settings.patch is None:
        raise RunError(
            "export to a MONAI bundle is for segmentation in patches, and this study has data.patch: null; "
            "export to onnx or torchscript instead"
        )
    if task.minimum_voxels or task.largest:
        # MONAI's own transforms for it need scikit-image or cucim, which a hospital's viewer rarely has.
        raise RunError(
            "export to a MONAI bundle: task.largest and task.minimum_voxels have no equal in MONAI without "
            "further packages; export to onnx or torchscript, and keep or drop pieces after it"
        )
    inverted = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    saved = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "mask",
        "output_dtype": "$'uint8'",
        "separate_folder": False,
        "resample": False,
        "print_log": False,
    }
    return {
        # A volume smaller than the patch is padded with its own darkest value, as in training.
        "inferer": "$lambda image: monai.inferers.sliding_window_inference(image[None], @patch, "
        f"{task.windows}, @network, {task.overlap}, mode='{task.blend}', cval=float(image.min()))[0]",
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                inverted,
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                saved,
            ],
        },
        "predict": "$lambda case: @postprocessing({**case, 'pred': "
        "@inferer(case['image'].as_tensor().to(@device)).cpu()})",
        # One case is in memory at a time: the masks are on disk, and nothing else is kept.
        "run": ["$torch.set_grad_enabled(False)", "$[@predict(case) is None for case in @dataset]"],
    }


def _classification(settings: Images) -> dict[str, Any]:
    # MONAI's own crop and pad round the other way where one side is odd and the other even.
    cut = (
        "$lambda image: image[(slice(None), *(slice(max(s - w, 0) // 2, max(s - w, 0) // 2 + w) for s, w in "
        "zip(image.shape[1:], @patch)))]"
    )
    filled = (
        "$lambda image, value: torch.nn.functional.pad(image, [n for s, w in list(zip(image.shape[1:], "
        "@patch))[::-1] for n in ((w - s) // 2, w - s - (w - s) // 2)], value=value)"
    )
    whole = settings.patch is None
    return {
        **({} if whole else {"cut": cut, "filled": filled}),
        "middle": "$lambda image: image"
        if whole
        else "$lambda image: @filled(@cut(image), float(image.min()))",
        "saver": {"_target_": "CSVSaver", "output_dir": "@output_dir", "filename": "predictions.csv"},
        # The network's own outputs are probabilities.
        "predict": "$lambda case: "
        "@saver.save(@network(@middle(case['image'].as_tensor().to(@device))[None])[0].cpu(), "
        "{'filename_or_obj': case['image'].meta['filename_or_obj']})",
        "run": [
            "$torch.set_grad_enabled(False)",
            "$[@predict(case) is None for case in @dataset]",
            "$@saver.finalize()",
        ],
    }


def preprocessing(settings: Images) -> list[dict[str, Any]]:
    """Return MONAI's transforms that prepare an image as medfed does."""
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
        # With labels left alone MONAI warns, and takes the letters of the file's own space.
        {"_target_": "Orientationd", "keys": "image", "axcodes": settings.orientation, "labels": None},
    ]
    if settings.spacing_mm != "native":
        steps.append(
            {
                "_target_": "Spacingd",
                "keys": "image",
                "pixdim": list(settings.spacing_mm),
                "mode": "bilinear",
                "padding_mode": "border",
            }
        )
    return [*steps, *normalised(settings.normalise)]


def normalised(kind: Normalise) -> list[dict[str, Any]]:
    """Return MONAI's equal of a normalisation.

    Raises:
        RunError: if MONAI has none.
    """
    if isinstance(kind, NoNormalisation):
        return []
    if isinstance(kind, Percentile):
        percentiles = {"lower": kind.low, "upper": kind.high, "b_min": -1.0, "b_max": 1.0}
        return [
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "keys": "image",
                **percentiles,
                "clip": True,
                "channel_wise": True,
            }
        ]
    if isinstance(kind, (Window, FederatedFingerprint)):
        low, high = (-1.0, 1.0)
        if isinstance(kind, FederatedFingerprint):
            low, high = ((bound - kind.mean) / kind.sd for bound in (kind.low, kind.high))
        limits = {"a_min": kind.low, "a_max": kind.high, "b_min": low, "b_max": high}
        return [{"_target_": "ScaleIntensityRanged", "keys": "image", **limits, "clip": True}]
    if isinstance(kind, ZScore) and not kind.foreground and kind.clip is None:
        return [{"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}]
    raise RunError(
        f"export to a MONAI bundle: data.normalise '{kind_of(kind)}' with these settings has no equal in "
        "MONAI; export to onnx or torchscript, and normalise before it"
    )
