"""MONAI's networks by their own arguments: what is built is MONAI's, and nothing else can be named."""

from __future__ import annotations

import monai.networks.nets
import pytest
import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks._monai_catalogue import CLASSIFIERS, SEGMENTERS, as_arguments, check_arguments
from medfed.models.networks.monai_classifier import MonaiClassifier
from medfed.models.networks.monai_segmenter import MonaiSegmenter

torch.set_num_threads(1)

SMALL = {
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
    "BasicUNet": {"features": [4, 4, 4, 4, 4, 4]},
    "SegResNet": {},
    "SwinUNETR": {"feature_size": 12, "window_size": 2, "depths": [1, 1, 1, 1]},
    "UNETR": {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 4},
    "UNet": {"channels": [4, 8], "strides": [2], "norm": ["GROUP", {"num_groups": 2}], "act": "relu"},
}


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
def test_it_is_monai_s_network_with_monai_s_names(name):
    network = MonaiSegmenter(name=name, arguments=SMALL[name])
    sized = {"img_size": (64, 64, 64)} if name == "UNETR" else {}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in SMALL[name].items()}
    expected = getattr(monai.networks.nets, name)(
        spatial_dims=3, in_channels=1, out_channels=3, **plain, **sized
    )
    built = network.build(1, 3, (64, 64, 64)).state_dict()
    # The only tensors left out are those of a transformer's cross attention, which is never used.
    assert [key for key in expected.state_dict() if key not in built and "norm_cross_attn" not in key] == []
    assert all(expected.state_dict()[key].shape == tensor.shape for key, tensor in built.items())
    assert any(key.startswith(f"{network.head}.") for key in built)


@pytest.mark.parametrize("name", ["DenseNet169", "EfficientNetBN", "resnet10"])
def test_a_classifier_gives_logits_and_downloads_nothing(name, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    arguments = {"model_name": "efficientnet-b0"} if name == "EfficientNetBN" else {}
    network = MonaiClassifier(name=name, arguments=arguments)
    built: nn.Module = network.build(1, 3, (32, 32, 32)).eval()
    assert built(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 3)
    assert built.get_submodule(network.head).out_features == 3


@pytest.mark.parametrize(
    ("catalogue", "name", "arguments", "message"),
    [
        (SEGMENTERS, "UNet", {"dimensions": 3}, "'dimensions' is no argument of UNet"),
        (SEGMENTERS, "UNet", {"in_channels": 3}, "'in_channels' is no argument of UNet"),
        (SEGMENTERS, "UNet", {"channels": [4, "8"]}, "channels of UNet must be a list of whole numbers"),
        (SEGMENTERS, "UNet", {"channels": [4, 10**9]}, "channels of UNet must be"),
        (SEGMENTERS, "SegResNet", {"blocks_down": [1, 129]}, "must be a list of whole numbers up to 128"),
        (SEGMENTERS, "SegResNet", {"blocks_down": [1] * 17}, "must be a list of whole numbers up to 128"),
        (SEGMENTERS, "UNet", {"num_res_units": 129}, "must be a whole number from 0 to 128"),
        (SEGMENTERS, "UNet", {"a\x1b[0m": 1}, r"'a.x1b\[0m' is no argument of UNet"),
        (SEGMENTERS, "UNet", {"channels": [4] * 65}, "channels of UNet must be"),
        (SEGMENTERS, "UNet", {"channels": True}, "channels of UNet must be"),
        (SEGMENTERS, "UNet", {"strides": [[[2]]]}, "strides of UNet must be"),
        (SEGMENTERS, "UNet", {"norm": ["GROUP", {"num_groups": "os"}]}, "norm of UNet must be a name"),
        (SEGMENTERS, "UNet", {"norm": "torch.nn.Module"}, "norm of UNet must be a name"),
        (SEGMENTERS, "UNet", {"dropout": 2}, "dropout of UNet must be a number from 0 to 1"),
        (SEGMENTERS, "UNet", {"bias": 1}, "bias of UNet must be true or false"),
        (SEGMENTERS, "SwinUNETR", {"downsample": "x"}, "must be merging or mergingv2"),
        (
            CLASSIFIERS,
            "DenseNet121",
            {"pretrained": True},
            "pretrained of DenseNet121 must be false: no weights",
        ),
    ],
)
def test_an_argument_is_refused_with_what_it_may_be(catalogue, name, arguments, message):
    with pytest.raises(StudyError, match=message):
        check_arguments(name, catalogue[name], arguments)


def test_a_bundle_s_channels_axes_and_old_arguments_are_left_to_the_study():
    result = {"spatial_dims": 3, "in_channels": 1, "out_channels": 14, "img_size": 96, "feature_size": 48}
    assert as_arguments("SwinUNETR", SEGMENTERS["SwinUNETR"], result) == {"feature_size": 48}


@pytest.mark.parametrize("name", ["Unet", "os.system", "DenseNet121", "__doc__", ""])
def test_only_names_of_the_list_are_built(name):
    with pytest.raises(
        StudyError, match=r"is not a network of MONAI that a study may name here; .* SegResNet"
    ):
        MonaiSegmenter(name=name).build(1, 2, (64, 64, 64))


def test_the_bundle_s_name_needs_a_bundle():
    with pytest.raises(StudyError, match=r"'bundle' stands for the network of the bundle"):
        MonaiSegmenter(name="bundle").check_size((64, 64, 64))


def test_what_monai_refuses_is_a_study_s_error():
    with pytest.raises(StudyError, match=r"MONAI cannot build SwinUNETR with these arguments: ValueError"):
        MonaiSegmenter(name="SwinUNETR", arguments={"feature_size": 13}).build(1, 2, (64, 64, 64))


@pytest.mark.parametrize(
    ("strides", "size", "fits"),
    [([2, 2], (8, 8, 8), True), ([2, 2], (8, 8, 6), False), ([[2, 2, 1], 2], (8, 8, 6), True)],
)
def test_sides_are_multiples_of_the_strides(strides, size, fits):
    network = MonaiSegmenter(name="UNet", arguments={"channels": [4, 8, 8], "strides": strides})
    if fits:
        network.check_size(size)
        assert network.build(1, 2, size)(torch.zeros(1, 1, *size)).shape == (1, 2, *size)
    else:
        with pytest.raises(StudyError, match=r"a patch of 8 x 8 x 6 voxels does not fit it"):
            network.check_size(size)
