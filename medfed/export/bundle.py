"""A MONAI Bundle: the network, how images are prepared, and an inference that `python -m monai.bundle run` runs.

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \\
        --dataset_dir IMAGES --output_dir MASKS

It needs MONAI and nibabel and nothing of medfed. Specification: docs.monai.io, "MONAI Bundle Specification".
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from medfed.data.normalise import Normalise
from medfed.data.normalise.fingerprint import FederatedFingerprint
from medfed.data.normalise.none import NoNormalisation
from medfed.data.normalise.percentile import Percentile
from medfed.data.normalise.window import Window
from medfed.data.normalise.zscore import ZScore
from medfed.data.settings import Images
from medfed.errors import RunError
from medfed.export._subject import Subject
from medfed.export.torchscript import trace
from medfed.kinds import kind_of
from medfed.record.folder import write_whole

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write models/, configs/ and docs/ of a bundle, its network checked against the module.

    Raises:
        RunError: if the task is no segmentation in patches, or MONAI has no equal for how images are prepared or masks
            finished.
    """
    settings = subject.study.data
    if subject.study.task.needs != "segment" or not isinstance(settings, Images) or settings.patch is None:
        raise RunError(
            "export to a MONAI bundle is for segmentation in patches; export to onnx or torchscript instead"
        )
    inference = configuration(subject, settings)
    network = folder / "models" / "model.ts"
    difference = trace(subject, network)
    files = {
        folder / "configs" / "metadata.json": metadata(subject, settings),
        folder / "configs" / "inference.json": inference,
    }
    for path, content in files.items():
        write_whole(path, msgspec.json.format(msgspec.json.encode(content), indent=2))
    write_whole(folder / "docs" / "README.md", readme(subject, difference).encode())
    return [network, *files, folder / "docs" / "README.md"]


def metadata(subject: Subject, settings: Images) -> dict[str, Any]:
    """Return metadata.json: what the bundle is, and the shapes that `verify_net_in_out` checks."""
    assert settings.patch is not None
    image = {
        "type": "image",
        "format": "magnitude",
        "num_channels": settings.channels,
        "spatial_shape": list(settings.patch),
        "dtype": "float32",
        "value_range": [-1, 1] if isinstance(settings.normalise, (Percentile, Window)) else [],
        "is_patch_data": True,
        "channel_def": {str(number): "image" for number in range(settings.channels)},
    }
    classes = {str(number): name for number, name in enumerate(subject.classes)}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported from study {subject.study.name}, {subject.facts['digest'][:12]}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "optional_packages_version": {"nibabel": version("nibabel")},
        "task": f"segmentation of {', '.join(subject.classes[1:])}",
        "description": f"{subject.model} model of the study {subject.study.name}, trained by medfed over "
        f"{len(subject.facts.get('sites', []))} hospitals",
        "authors": "to be written by a person",
        "copyright": "to be written by a person",
        "intended_use": "research; not a medical device",
        "label_classes": classes,
        "pred_classes": classes,
        "network_data_format": {
            "inputs": {"image": image},
            "outputs": {
                "pred": {
                    **image,
                    "format": "logits",
                    "num_channels": len(subject.classes),
                    "value_range": [],
                    "channel_def": classes,
                }
            },
        },
    }


def configuration(subject: Subject, settings: Images) -> dict[str, Any]:
    """Return inference.json: a folder of NIfTI images to a folder of masks on the images' own grids."""
    task: Any = subject.study.task
    if task.minimum_voxels or task.largest:
        # MONAI's own transforms for it need scikit-image or cucim, which a hospital's viewer rarely has.
        raise RunError(
            "export to a MONAI bundle: task.largest and task.minimum_voxels have no equal in MONAI without further "
            "packages; export to onnx or torchscript, and keep or drop pieces after it"
        )
    if settings.channels > 1:
        raise RunError(
            "export to a MONAI bundle: images of several files are not read by it; export to onnx or torchscript"
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
        "imports": ["$import glob", "$import os", "$import monai", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
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
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @images]",
            "transform": "@preprocessing",
        },
        "predict": "$lambda case: @postprocessing({**case, 'pred': "
        "@inferer(case['image'].as_tensor().to(@device)).cpu()})",
        # One case is in memory at a time: the masks are on disk, and nothing else is kept.
        "run": ["$torch.set_grad_enabled(False)", "$[@predict(case) is None for case in @dataset]"],
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
        f"export to a MONAI bundle: data.normalise '{kind_of(kind)}' with these settings has no equal in MONAI; "
        f"export to onnx or torchscript, and normalise before it"
    )


def readme(subject: Subject, difference: float) -> str:
    """Return the bundle's page for people."""
    return (
        f"# {subject.study.name}: {subject.model} model\n\n"
        f"Segmentation of {', '.join(subject.classes[1:])}, trained by medfed over "
        f"{len(subject.facts.get('sites', []))} hospitals; study {subject.facts['digest'][:12]}.\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\\n"
        "        --dataset_dir IMAGES --output_dir MASKS\n\n"
        f"The network in models/model.ts differs from the one that was trained by at most {difference:.1e} of its "
        "largest output.\n\nResearch only: not a medical device. Authors, copyright and licence are to be written by a "
        "person.\n"
    )
