"""A classifier of images with columns beside them: every network of the registry, and its values by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks import for_images_of
from medfed.models.networks._image_and_table import HEAD, with_columns
from medfed.models.networks.fully_connected import FullyConnected
from medfed.registry import kinds
from medfed.testing._networks import installed, small, smallest

torch.set_num_threads(1)

CLASSIFIERS = sorted(name for name, kind in installed().items() if "classify" in kind.serves)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_takes_columns_and_learns_from_both(name: str, dims: int) -> None:
    if getattr(kinds("networks")[name](), "spatial_dims", None) not in (None, dims):
        pytest.skip("a network for images of other axes")
    record = for_images_of(small(name), dims)
    size = smallest(record)
    torch.manual_seed(0)
    network = with_columns(record.build(1, 3, size), record, 4, (5,), 3)
    image, columns = torch.randn(2, 1, *size), torch.randn(2, 4)

    def trained_on(image: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # dropout
        return network(image, columns)

    logits = trained_on(image, columns)
    assert logits.shape == (2, 3)
    assert not torch.equal(logits, trained_on(image, columns + 1))
    assert not torch.equal(logits, trained_on(image.flip(0), columns))
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert isinstance(network.get_submodule(HEAD), nn.Linear)


def test_the_logits_by_hand() -> None:
    record = small("resnet")
    torch.manual_seed(0)
    plain = record.build(1, 2, (16, 16, 16)).eval()
    image, columns = torch.randn(3, 1, 16, 16, 16), torch.randn(3, 2)
    # The same network again, of which the features are those before its last layer.
    torch.manual_seed(0)
    fused = with_columns(record.build(1, 2, (16, 16, 16)).eval(), record, 2, (4,), 2).eval()
    captured: list[torch.Tensor] = []
    plain.fc.register_forward_pre_hook(lambda layer, inputs: captured.append(inputs[0]))
    plain(image)
    first, head = fused.table[0], fused.head
    beside = (columns @ first.weight.T + first.bias).clamp(min=0)
    expected = torch.cat([captured[0], beside], 1) @ head.weight.T + head.bias
    assert torch.allclose(fused(image, columns), expected, atol=1e-6)


def test_without_hidden_layers_the_columns_meet_the_head_as_they_are() -> None:
    record = small("resnet")
    fused = with_columns(record.build(1, 2, (16, 16, 16)), record, 3, (), 2)
    assert fused.head.in_features == fused.image(torch.zeros(2, 1, 16, 16, 16)).shape[1] + 3


def test_a_network_without_a_linear_last_layer_is_refused() -> None:
    record = FullyConnected(hidden=(4,))
    network = nn.Sequential()
    network.add_module("output", nn.Conv3d(1, 2, 1))
    with pytest.raises(StudyError, match="'fully_connected' has no linear last layer"):
        with_columns(network, record, 2, (4,), 2)
