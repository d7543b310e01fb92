from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import StudyError
from medfed.wire.encoding import decode_global, decode_update, encode_global, encode_update
from medfed.wire.update import GlobalModel, Update, check_update
from medfed.wire.weights import (
    Difference,
    approximate_norm,
    digest,
    load,
    local_names,
    norm,
    own_tensors,
    shared_tensors,
    size_in_bytes,
    unexchanged,
    weights_of,
)


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


class Holding(nn.Module):
    """A linear layer with whatever else."""

    def __init__(self, **state) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        for name, value in state.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)


LINEAR = {"linear.weight", "linear.bias"}


def merged(module: nn.Module, *locals_: nn.Module) -> dict[str, torch.Tensor]:
    """Return the mean of modules after each crossed the wire, loaded into the first."""
    start = decode_global(encode_global(GlobalModel(0, weights_of(module)))).weights
    updates = [
        check_update(decode_update(encode_update(update), start), start)
        for number, local in enumerate(locals_)
        for update in [Update(f"site {number}", 1, Difference(weights_of(local), start), 10)]
    ]
    weights, _ = FedAvg().merge(updates, {}, start)
    load(module, weights)
    return dict(weights)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_tensors_are_merged_by_their_parts(dtype):
    sites = [Holding(c=nn.Parameter(torch.tensor([value], dtype=dtype))) for value in (1 + 4j, 3 - 2j)]
    module = Holding(c=nn.Parameter(torch.tensor([9j], dtype=dtype)))
    weights = merged(module, *sites)
    assert weights["c"].tolist() == [[2.0, 1.0]]
    assert torch.equal(module.c.detach(), torch.tensor([2 + 1j], dtype=dtype))
    load(module, {"c": torch.tensor([5 - 1j], dtype=dtype)})
    assert complex(module.c) == 5 - 1j


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_an_empty_buffer_is_no_obstacle(shape):
    module = Holding(e=torch.zeros(shape))
    weights = merged(module, Holding(e=torch.zeros(shape)))
    assert weights["e"].shape == shape
    assert digest(weights) != digest({name: weights[name] for name in LINEAR})


class DictExtra(Holding):
    def get_extra_state(self):
        return {"calls": 1}

    def set_extra_state(self, state):
        pass


class TensorExtra(DictExtra):
    def get_extra_state(self):
        return torch.ones(2)


@pytest.mark.parametrize(
    "module, name, reason",
    [
        (DictExtra(), "_extra_state", "a dict, no tensor"),
        (TensorExtra(), "_extra_state", "made by the module for each checkpoint"),
        (Holding(f=torch.zeros(2, dtype=torch.float8_e4m3fn)), "f", "of torch.float8_e4m3fn"),
        (Holding(s=torch.eye(2).to_sparse()), "s", "sparse"),
    ],
)
def test_what_cannot_be_exchanged_stays_and_is_named(module, name, reason):
    assert set(weights_of(module)) == LINEAR
    assert list(unexchanged(module)) == [name]
    assert unexchanged(module)[name].startswith(reason)


def test_integers_stay_without_being_named():
    module = Holding(i=torch.zeros(2, dtype=torch.int64), b=torch.ones(1, dtype=torch.bool))
    assert set(weights_of(module)) == LINEAR
    assert unexchanged(module) == {}


class Halved(Holding):
    """Saves one parameter under another name, which `load` could not write back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(
            lambda module, state, prefix, _: state.update({f"{prefix}w": state.pop(f"{prefix}linear.weight")})
        )


@pytest.mark.parametrize(
    "module, message",
    [
        (Holding(f=nn.Parameter(torch.zeros(2).to(torch.float8_e5m2))), "'f' of Holding trains and can't be"),
        (Halved(), "'linear.weight' of Halved trains and .* not in the module's state_dict"),
        (nn.Sequential(nn.LazyLinear(2)), "'0.weight' of Sequential has no values yet"),
        (nn.Linear(2, 2, device="meta"), "'weight' of Linear has no values yet"),
    ],
)
def test_a_trained_parameter_that_cannot_be_exchanged_is_refused(module, message):
    with pytest.raises(StudyError, match=message):
        weights_of(module)


def test_frozen_tied_parameters_are_omitted_under_each_name():
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight.requires_grad_(False)
    assert set(shared_tensors(module, trained_only=True)) == {"a.bias", "b.bias"}


def tied() -> nn.Module:
    module = nn.ModuleDict({"a": network(), "b": nn.Linear(2, 3, bias=False)})
    module["b"].weight = module["a"][0].weight
    module["again"] = module["a"]
    module.register_module("none", None)
    module.register_buffer("unset", None)
    return module


@pytest.mark.parametrize(
    "module", [network(), tied(), torch.compile(tied(), backend="eager"), torch.jit.script(network())]
)
def test_own_tensors_are_those_that_torch_lists(module):
    parameters, buffers = own_tensors(module)
    for own, listed in (
        (parameters, module.named_parameters(remove_duplicate=False)),
        (buffers, module.named_buffers(remove_duplicate=False)),
    ):
        expected = dict(listed)
        assert list(own) == list(expected)
        assert all(own[name].data_ptr() == expected[name].data_ptr() for name in own)


def test_a_module_that_holds_itself_is_an_error_and_no_endless_walk():
    module = network()
    module[0].parent = module
    with pytest.raises(RecursionError, match="maximum recursion depth"):
        own_tensors(module)


def test_a_compiled_module_has_the_names_of_its_own():
    module = network()
    compiled = torch.compile(module, backend="eager")
    assert weights_of(compiled).keys() == weights_of(module).keys()
    load(compiled, {"0.bias": torch.ones(3)})
    assert module[0].bias.tolist() == [1, 1, 1]


def test_an_approximate_norm_by_hand_and_where_float32_overflows():
    assert approximate_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == pytest.approx(5)
    apart = Difference({"a": torch.tensor([7.0, 1.0])}, {"a": torch.tensor([4.0, 5.0])})
    assert approximate_norm(apart) == pytest.approx(5)
    assert approximate_norm({"a": torch.tensor([3e30, 4e30])}) == pytest.approx(5e30)
    assert approximate_norm({"a": torch.tensor([3.0], dtype=torch.float64)}) == pytest.approx(3)


def test_an_approximate_norm_of_nothing_is_zero_and_of_values_whose_squares_vanish_is_not():
    same = {"a": torch.full((40_000,), 2.0)}
    assert approximate_norm(Difference(same, same)) == 0
    tiny = {"a": torch.cat([torch.zeros(40_000), torch.tensor([3e-30, 4e-30])])}
    assert approximate_norm(tiny) == pytest.approx(5e-30)


def test_size_in_bytes_by_hand():
    assert size_in_bytes({"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.float64)}) == 12 + 32
