"""A MONAI Bundle: the network, the preparation of images, and the inference.

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \\
        --dataset_dir IMAGES --output_dir FOUND

writes one mask per image for a segmentation, and predictions.csv with each image's probabilities for a
classification. It needs MONAI and nibabel but not medfed. Specification: docs.monai.io, "MONAI Bundle
Specification".
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from medfed.data.normalise.percentile import Percentile
from medfed.data.normalise.window import Window
from medfed.data.settings import Images
from medfed.errors import RunError
from medfed.files import write_whole
from medfed.pipeline.export._bundle_inference import inference
from medfed.pipeline.export._bundle_training import definition_of, training, write_weights
from medfed.pipeline.export._exported_model import ExportedModel
from medfed.pipeline.export.torchscript import trace
from medfed.registry import kind_of
from medfed.wire.templates import render

# The version of pytorch-ignite that train.json was tried with.
IGNITE = "0.5.5"

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)


def write(exported: ExportedModel, folder: Path) -> None:
    """Write models/, configs/ and docs/ of a bundle, its network checked against the module.

    A segmentation that MONAI alone can build has its weights as model.pt and a train.json, too: another study
    or MONAI itself can train on from it. Adapters of `train.lora` are merged into the weights.

    Raises:
        RunError: if the task is neither segmentation in patches nor classification of images, or MONAI has no
            equivalent of how images are prepared or masks post-processed.
    """
    settings = exported.study.data
    if not isinstance(settings, Images):
        raise RunError(
            "export to a MONAI bundle: MONAI's bundles are of images, and this study's data are a table; "
            "export to onnx or torchscript instead"
        )
    if own := [kind_of(one) for one in settings.transforms if one.prepares]:
        raise RunError(
            f"export to a MONAI bundle: images are prepared by '{own[0]}' (data.transforms), for which MONAI "
            "has no equivalent; export to onnx or torchscript instead, and apply it before the network"
        )
    if exported.columns:
        raise RunError(
            "export to a MONAI bundle: MONAI's inference takes images alone, and this model also takes "
            f"{', '.join(exported.columns)}; export to onnx or torchscript instead"
        )
    task = exported.study.task
    if task.network_needs is not None:
        raise RunError(
            f"export to a MONAI bundle: task '{kind_of(task)}' trains a network for a later study and "
            "predicts nothing; start that study from the run folder (`start: {path: RUN, anew: "
            "[head]}`), or export to onnx or torchscript"
        )
    if task.predicts == "other":
        raise RunError(
            f"export to a MONAI bundle: task '{kind_of(task)}' has metrics and predictions of its own, for "
            "which a bundle has no inference; export to onnx or torchscript instead"
        )
    files = {"metadata.json": metadata(exported, settings), "inference.json": inference(exported, settings)}
    difference = trace(exported, folder / "models" / "model.ts")
    if (definition := definition_of(exported)) is not None:
        write_weights(exported, definition, folder / "models" / "model.pt")
        files["train.json"] = training(exported, settings, definition)
    for name, content in files.items():
        write_whole(folder / "configs" / name, msgspec.json.format(msgspec.json.encode(content), indent=2))
    write_whole(folder / "docs" / "README.md", readme(exported, difference, trains=definition is not None))


def metadata(exported: ExportedModel, settings: Images) -> dict[str, Any]:
    """Return metadata.json: what the bundle is, and the shapes that `verify_net_in_out` checks."""
    inputs = settings.channel_names or ("image",) * settings.inputs
    image = {
        "type": "image",
        "format": "magnitude",
        "num_channels": settings.inputs,
        "spatial_shape": list(exported.shape[1:]),
        "dtype": "float32",
        "value_range": [-1, 1] if isinstance(settings.normalise, (Percentile, Window)) else [],
        "is_patch_data": exported.study.task.predicts == "segment",
        "channel_def": {str(number): name for number, name in enumerate(inputs)},
    }
    named = {str(number): name for number, name in enumerate(exported.classes)}
    channels = {"num_channels": len(exported.classes), "channel_def": named}
    if exported.study.task.predicts == "segment":
        output = {**image, "format": "logits", "value_range": [], **channels}
    else:
        # The schema has no word for a classifier's output; MONAI's own classifiers use these.
        of_classifier = {
            "type": "probabilities",
            "format": "classes",
            "spatial_shape": [],
            "value_range": [0, 1],
        }
        output = {**image, **of_classifier, **channels}
    classes = ", ".join(f"{number}: {name}" for number, name in named.items())
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported from study {exported.study.name}, {exported.facts.digest[:12]}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "optional_packages_version": {"nibabel": version("nibabel"), "pytorch-ignite": IGNITE},
        "task": _title(exported).lower(),
        "description": f"{exported.model} model of the study {exported.study.name}, trained by medfed "
        f"{exported.trained_by}" + (f". {exported.facts.start.sentence}" if exported.facts.start else ""),
        "authors": "to be written by a person",
        "copyright": "to be written by a person",
        "intended_use": "research; not a medical device",
        "label_classes": classes,
        "pred_classes": classes,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}},
    }


def _title(exported: ExportedModel) -> str:
    if exported.study.task.predicts == "segment":
        return f"Segmentation of {', '.join(exported.classes[1:])}"
    if exported.study.task.predicts == "multilabel":
        return f"Prediction of the findings {', '.join(exported.classes)}"
    return f"Classification into {', '.join(exported.classes)}"


def readme(exported: ExportedModel, difference: float, *, trains: bool) -> str:
    """Return the bundle's page for people; with `trains` it has a train.json."""
    return render(
        Path(__file__).with_name("bundle_readme.md.jinja"),
        study=exported.study.name,
        model=exported.model,
        title=_title(exported),
        trained_by=exported.trained_by,
        digest=exported.facts.digest[:12],
        is_segmentation=exported.study.task.predicts == "segment",
        classes=", ".join(exported.classes),
        difference=difference,
        start=exported.facts.start.sentence if exported.facts.start else "",
        trains=trains,
    )
