"""inference.json of a MONAI Bundle: MONAI's own transforms, from a folder of NIfTI images to predictions."""

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
from medfed.pipeline.export._exported_model import ExportedModel
from medfed.registry import kind_of

Config = dict[str, Any]

# Crop and pad of a classifier's images; MONAI's own round differently if one side is odd and the other even.
CROP = (
    "$lambda image: image[(slice(None), *(slice(max(s - w, 0) // 2, max(s - w, 0) // 2 + w) for s, w in "
    "zip(image.shape[1:], @patch)))]"
)
PAD = (
    "$lambda image, value: torch.nn.functional.pad(image, [n for s, w in list(zip(image.shape[1:], "
    "@patch))[::-1] for n in ((w - s) // 2, w - s - (w - s) // 2)], value=value)"
)


def inference(exported: ExportedModel, settings: Images) -> Config:
    """Return the inference that writes a mask on each image's own grid, or a table of probabilities.

    Raises:
        RunError: if MONAI has no equivalent of how images are prepared or masks post-processed.
    """
    if settings.spatial_dims == 2:
        raise RunError(
            "export to a MONAI bundle: its transforms read volumes, and data.spatial_dims is 2; export to "
            "onnx or torchscript"
        )
    if settings.inputs > 1:
        raise RunError(
            "export to a MONAI bundle: it cannot read images of several files; export to onnx or torchscript"
        )
    network = component("torch.jit.load", f="$@bundle_root + '/models/model.ts'", map_location="@device")
    dataset = component("Dataset", data="$[{'image': file} for file in @images]", transform="@preprocessing")
    common = {
        "imports": ["$import glob", "$import os", "$import monai", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/found'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "patch": list(settings.patch or ()),
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))",
        "network_def": network,
        "network": "$@network_def.eval()",
        "preprocessing": component("Compose", transforms=preprocessing(settings)),
        "dataset": dataset,
    }
    segments = exported.study.task.predicts == "segment"
    return common | (_segmentation(exported, settings) if segments else _classification(settings))


def component(target: str, **arguments: Any) -> Config:
    """Return the configuration of one object: its class or function, and the arguments of its call."""
    return {"_target_": target, **arguments}


def _transform(target: str, keys: str, **arguments: Any) -> Config:
    return component(target, keys=keys, **arguments)


def _segmentation(exported: ExportedModel, settings: Images) -> Config:
    task: Any = exported.study.task
    if settings.patch is None:
        raise RunError(
            "export to a MONAI bundle is for segmentation in patches, and this study has data.patch: null; "
            "export to onnx or torchscript instead"
        )
    removed = task.minimum_voxels or task.largest or not isinstance(task.postprocess, str)
    if removed and task.postprocess != {}:
        # MONAI's own transforms for it need scikit-image or cucim, which a hospital's viewer rarely has.
        raise RunError(
            "export to a MONAI bundle: task.largest and task.minimum_voxels have no equal in MONAI without "
            "further packages, nor has task.postprocess; export to onnx or torchscript, and keep or drop "
            "components afterwards"
        )
    stored = "$'uint8'" if len(task.classes) <= 1 << 8 else "$'int32'"
    postprocessing = [
        _transform("Activationsd", "pred", softmax=True),
        _transform(
            "Invertd", "pred", transform="@preprocessing", orig_keys="image", nearest_interp=False,
            to_tensor=True,
        ),
        _transform("AsDiscreted", "pred", argmax=True),
        _transform(
            "SaveImaged", "pred", output_dir="@output_dir", output_postfix="mask", output_dtype=stored,
            separate_folder=False, resample=False, print_log=False,
        ),
    ]  # fmt: skip
    return {
        # A volume smaller than the patch is padded with its own darkest value, as in training.
        "windows": "$lambda image: monai.inferers.sliding_window_inference(image[None], @patch, "
        f"{task.windows}, @network, {task.overlap}, mode='{task.blend}', cval=float(image.min()))[0]",
        # The mean of the logits over the image and its mirrored images; axis 0 is the channels'.
        "mirrorings": [[axis - 1 for axis in axes] for axes in _mirrorings(task, settings)],
        "inferer": "$lambda image: sum(@windows(image.flip(axes)).flip(axes) for axes in @mirrorings) "
        "/ len(@mirrorings)",
        "postprocessing": component("Compose", transforms=postprocessing),
        "predict": "$lambda case: @postprocessing({**case, 'pred': "
        "@inferer(case['image'].as_tensor().to(@device)).cpu()})",
        # One case is in memory at a time: masks are written to disk, and nothing else is kept.
        "run": ["$torch.set_grad_enabled(False)", "$[@predict(case) is None for case in @dataset]"],
    }


def _mirrorings(task: Any, settings: Images) -> tuple[tuple[int, ...], ...]:
    from medfed.models.tasks._segmentation import mirrorings

    axes = settings.patient_axes
    return mirrorings([axes.index(axis) for axis in getattr(task, "mirror", ())])


def _classification(settings: Images) -> Config:
    resize: Config = {"middle": "$lambda image: image"}
    if settings.patch is not None:
        middle = "$lambda image: @filled(@cut(image), float(image.min()))"
        resize = {"cut": CROP, "filled": PAD, "middle": middle}
    return {
        **resize,
        "saver": component("CSVSaver", output_dir="@output_dir", filename="predictions.csv"),
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


def preprocessing(settings: Images, keys: tuple[str, ...] = ("image",)) -> list[Config]:
    """Return MONAI's transforms that prepare an image as medfed does, and with it a label if it has a key."""
    several = keys[0] if len(keys) == 1 else list(keys)
    steps = [
        component("LoadImaged", keys=several, reader="NibabelReader", ensure_channel_first=True),
        # Without `labels: null` MONAI warns, and takes the letters of the file's own space.
        component("Orientationd", keys=several, axcodes=settings.orientation, labels=None),
    ]
    if isinstance(settings.spacing_mm, tuple):
        modes = ["bilinear", *("nearest" for _ in keys[1:])]
        mode = modes[0] if len(keys) == 1 else modes
        pixdim = list(settings.spacing_mm)
        steps.append(component("Spacingd", keys=several, pixdim=pixdim, mode=mode, padding_mode="border"))
    return [*steps, *_normalisation(settings.normalise)]


def _normalisation(kind: Normalise) -> list[Config]:
    """Return MONAI's equivalent of a normalisation.

    Raises:
        RunError: if MONAI has none.
    """
    if isinstance(kind, NoNormalisation):
        return []
    if isinstance(kind, Percentile):
        limits = {"lower": kind.low, "upper": kind.high, "b_min": -1.0, "b_max": 1.0}
        return [
            _transform("ScaleIntensityRangePercentilesd", "image", **limits, clip=True, channel_wise=True)
        ]
    if isinstance(kind, (Window, FederatedFingerprint)):
        low, high = (-1.0, 1.0)
        if isinstance(kind, FederatedFingerprint):
            low, high = ((bound - kind.mean) / kind.sd for bound in (kind.low, kind.high))
        limits = {"a_min": kind.low, "a_max": kind.high, "b_min": low, "b_max": high}
        return [_transform("ScaleIntensityRanged", "image", **limits, clip=True)]
    if isinstance(kind, ZScore) and not kind.foreground and kind.clip is None:
        return [_transform("NormalizeIntensityd", "image", channel_wise=True)]
    raise RunError(
        f"export to a MONAI bundle: data.normalise '{kind_of(kind)}' with these settings has no equal in "
        "MONAI; export to onnx or torchscript, and normalise before it"
    )
