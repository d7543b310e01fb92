"""train.json of a MONAI Bundle: the network by MONAI's own class, its weights, and training on from them.

    python -m monai.bundle run --config_file BUNDLE/configs/train.json --bundle_root BUNDLE \\
        --dataset_dir DATA --epochs 5

trains on over DATA/images and DATA/labels (NIfTI of the same names; a label's voxels hold the numbers of the
classes) and saves BUNDLE/models/model_trained.pt. It needs MONAI, nibabel and pytorch-ignite but not medfed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfed.data.settings import Images
from medfed.errors import RunError
from medfed.files import private_folder
from medfed.models.networks._network import Definition, build_plainly
from medfed.pipeline.export._bundle_inference import Config, component, preprocessing
from medfed.pipeline.export._exported_model import Computed, ExportedModel
from medfed.study.network import network_for

# A transformer block's norm for cross attention, which MONAI's checkpoints hold and nothing uses.
_UNUSED = "norm_cross_attn"


def definition_of(exported: ExportedModel) -> Definition | None:
    """Return how MONAI alone builds the network of an exported segmentation, None if it cannot.

    It cannot where medfed changes what MONAI builds: another norm under differential privacy, or a kind of
    network that says no definition.
    """
    study = exported.study
    data = study.data
    if not isinstance(data, Images) or study.task.predicts != "segment" or study.privacy.replaces_batch_norm:
        return None
    record = network_for(study)
    return record.definition(data.inputs, study.task.outputs, data.patch)


def write_weights(exported: ExportedModel, definition: Definition, path: Path) -> None:
    """Write the weights as MONAI's own network has them, checked against the module.

    Raises:
        RunError: if MONAI's network lacks a tensor or computes something else.
    """
    network = build_plainly(definition)
    missing, unexpected = network.load_state_dict(exported.computed.network.state_dict(), strict=False)
    if unexpected or any(_UNUSED not in name for name in missing):
        raise RunError(
            f"export to a MONAI bundle: MONAI's {definition.name} has other tensors than the trained "
            "network; was the run trained with another version of MONAI?"
        )
    exported.check(_evaluating(network), "a MONAI bundle")
    private_folder(path.parent)
    torch.save(network.state_dict(), path)


def _evaluating(network: nn.Module) -> Any:
    computed = Computed(network, False).eval()

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            outputs: torch.Tensor = computed(*inputs)
        return outputs

    return run


def training(exported: ExportedModel, settings: Images, definition: Definition) -> Config:
    """Return the configuration that trains the exported network on, by MONAI's own trainer."""
    patch = list(settings.patch or ())
    return {
        "imports": ["$import glob", "$import os", "$import monai", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "epochs": 5,
        "learning_rate": 0.0001,
        "batch": exported.study.train.batch,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, 'images', '*.nii*')))",
        "labels": "$sorted(glob.glob(os.path.join(@dataset_dir, 'labels', '*.nii*')))",
        "network_def": component(definition.name, **_plain(definition.arguments)),
        "network": "$@network_def.to(@device)",
        "loss": component("DiceCELoss", to_onehot_y=True, softmax=True, include_background=False),
        "optimizer": component("torch.optim.AdamW", params="$@network.parameters()", lr="@learning_rate"),
        "preprocessing": component(
            "Compose",
            transforms=[
                *preprocessing(settings, ("image", "label")),
                component("SpatialPadd", keys=["image", "label"], spatial_size=patch),
                component("RandSpatialCropd", keys=["image", "label"], roi_size=patch, random_size=False),
            ],
        ),
        "dataset": component(
            "Dataset",
            data="$[{'image': i, 'label': l} for i, l in zip(@images, @labels, strict=True)]",
            transform="@preprocessing",
        ),
        "dataloader": component("DataLoader", dataset="@dataset", batch_size="@batch", shuffle=True),
        "handlers": [
            component("StatsHandler", tag_name="loss", output_transform="$lambda out: out[0]['loss']")
        ],
        "trainer": component(
            "SupervisedTrainer",
            device="@device",
            max_epochs="@epochs",
            train_data_loader="@dataloader",
            network="@network",
            optimizer="@optimizer",
            loss_function="@loss",
            inferer=component("SimpleInferer"),
            train_handlers="@handlers",
        ),
        "initialize": [
            "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', map_location=@device, "
            "weights_only=True))"
        ],
        "run": ["$@trainer.run()"],
        "finalize": ["$torch.save(@network.state_dict(), @bundle_root + '/models/model_trained.pt')"],
    }


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value
