from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.wire.weights import Difference, digest, load, local_names, norm, weights_of


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def test_weights_are_floating_point_parameters_and_buffers_and_copies():
    module = network()
    weights = weights_of(module)
    assert set(weights) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight", "2.bias"
    }  # fmt: skip
    weights["0.bias"].fill_(9)
    assert not torch.equal(module[0].bias, weights["0.bias"])


def test_keep_local_keeps_norms_or_a_submodule():
    module = nn.ModuleDict({"body": network(), "head": nn.Linear(1, 1)})
    assert local_names(module, ["norm"]) == {f"body.1.{n}" for n in module["body"][1].state_dict()}
    assert local_names(module, ["head"]) == {"head.weight", "head.bias"}
    assert not any(".1." in name for name in weights_of(module, ["norm"]))


def test_load_keeps_the_tensors_an_optimiser_holds():
    module = network()
    parameter = module[0].weight
    load(module, {"0.weight": torch.full((3, 2), 4.0)})
    assert parameter is module[0].weight
    assert float(parameter.sum()) == 24


def test_a_difference_gives_the_minuend_back_where_float32_would_not():
    one, other = {"w": torch.tensor([1e-4, -3e-6, 1.0])}, {"w": torch.tensor([0.01, 0.7, -5.0])}
    in_float32 = other["w"] + (one["w"] - other["w"])
    assert not torch.equal(in_float32, one["w"])
    assert torch.equal((other["w"].double() + Difference(one, other)["w"]).float(), one["w"])


def test_norm_by_hand():
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0


def test_a_digest_sees_names_shapes_and_bits():
    tensor = torch.arange(6.0)
    assert digest({"a": tensor}) == digest({"a": tensor.clone()})
    others = [{"b": tensor}, {"a": tensor.reshape(2, 3)}, {"a": tensor.double()}, {"a": -tensor}]
    assert len({digest(weights) for weights in [{"a": tensor}, *others]}) == 5
    assert digest({"a": torch.tensor([0.0])}) != digest({"a": torch.tensor([-0.0])})


def test_a_difference_has_the_length_of_its_numbers():
    generator = torch.Generator().manual_seed(1)
    one = {"a": torch.randn(300, 400, generator=generator), "b": torch.randn((), generator=generator)}
    two = {"a": torch.randn(300, 400, generator=generator), "b": torch.randn((), generator=generator)}
    plain = torch.cat([(one[name].double() - two[name].double()).reshape(-1) for name in one])
    assert norm(Difference(one, two)) == pytest.approx(float(torch.linalg.vector_norm(plain)), rel=1e-12)
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]]), "empty": torch.zeros(0)}) == 5
