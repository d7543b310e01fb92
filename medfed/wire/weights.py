"""Named tensors and their arithmetic: a model's state, separate from its network.

`Weights` are a mapping from a tensor's name to a CPU tensor. A mapping may be lazy: `Difference` computes
a tensor on access, and a mapping that reads from a file loads it then. All arithmetic here handles one
tensor at a time, so a merge needs memory for the old weights, the new ones and a few tensors, however
many sites there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from medfed.errors import StudyError
from medfed.wire.untrusted_text import for_log

Weights = Mapping[str, Tensor]

# The elements that a norm processes at a time: in float64 they fit the processor's cache, and no
# tensor is copied.
_BLOCK = 1 << 15

# Below this sum of squares, those that float32 rounds to zero (of at most 1e-45 each) could matter.
_SMALL_SQUARES = 1e-26

# Batch norm's running statistics are averaged, never updated by a server optimiser: a step of momentum or
# Adam can leave the sites' range and make a variance negative, whose square root is NaN at the next
# validation. PyTorch gives these buffers the same last name in every network.
_STATISTICS = ("running_mean", "running_var")


def weights_of(
    module: nn.Module, keep_local: Iterable[str] = (), *, trained_only: bool = False
) -> dict[str, Tensor]:
    """Return CPU copies of a module's floating-point and complex parameters and buffers, by name.

    A complex tensor is returned as a real one, with its real and imaginary parts as a last axis of two.
    Integer buffers (batch norm's counter) are omitted, and so is every name that matches `keep_local`:
    `norm` matches batch, instance, group and layer norms (FedBN: Li, ICLR 2021, arXiv:2102.07623), any
    other entry the tensors below a submodule of that name or path (`head`, `model.2`; FedPer: Arivazhagan
    2019, arXiv:1912.00818). With `trained_only` frozen parameters are omitted, too: they are equal at every
    site (buffers are included). What else is omitted, `unexchanged` names.

    Raises:
        StudyError: if an entry matches nothing, a layer is lazy or without values, or a parameter that trains
            can't be exchanged.
    """
    shared = shared_tensors(module, keep_local, trained_only=trained_only)
    return {name: tensor.to("cpu", copy=True) for name, tensor in shared.items()}


def shared_tensors(
    module: nn.Module,
    keep_local: Iterable[str] = (),
    *,
    trained_only: bool = False,
    shapes_only: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors of `weights_of` as they are in the module, without copying them.

    With `shapes_only` they may be without values, on the meta device.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    local, (parameters, buffers) = local_names(module, keep_local), own_tensors(module)
    if trained_only:
        local |= {name for name, parameter in parameters.items() if not parameter.requires_grad}
    own = {**parameters, **buffers}
    state = {name: (tensor, reason) for name, tensor, reason in _state(module, own, shapes_only)}
    for name, parameter in parameters.items():
        reason = state[name][1] if name in state else "not in the module's state_dict"
        if parameter.requires_grad and name not in local and reason is not None:
            raise StudyError(
                f"'{name}' of {type(module).__name__} trains and can't be exchanged: it is {reason}. Train "
                "it as a float32 parameter, or keep the layer that holds it in the hospital by keep_local"
            )
    return {
        name: as_real(tensor.detach())
        for name, (tensor, reason) in state.items()
        if reason is None and name not in local
    }


def unexchanged(module: nn.Module, keep_local: Iterable[str] = ()) -> dict[str, str]:
    """Return what of a module's state can't be exchanged, by name, with what it is; integers are no surprise.

    Each hospital has its own of these, besides what `keep_local` keeps.
    """
    module = getattr(module, "_orig_mod", module)
    parameters, buffers = own_tensors(module)
    local, state = local_names(module, keep_local), _state(module, {**parameters, **buffers})
    reasons = {name: reason for name, _, reason in state if reason and name not in local}
    return {name: reason for name, reason in reasons.items() if reason != _INTEGER}


# The dtypes that are exchanged, besides complex ones, whose parts have one of these.
_EXCHANGED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_INTEGER = "of integers"


def own_tensors(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return a module's parameters and buffers by name, shared ones under each name.

    As `named_parameters` and `named_buffers` give them, but in one walk: it is done in each epoch.
    """
    parameters: dict[str, nn.Parameter] = {}
    buffers: dict[str, Tensor] = {}

    def walk(prefix: str, layer: nn.Module) -> None:
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                parameters[prefix + name] = parameter
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                buffers[prefix + name] = buffer
        for name, child in layer._modules.items():
            if child is not None:
                walk(f"{prefix}{name}.", child)

    walk("", module)
    return parameters, buffers


def _state(
    module: nn.Module, own: Mapping[str, Tensor], shapes_only: bool = False
) -> Iterator[tuple[str, Tensor, str | None]]:
    """Yield a module's state by name, and for what can't be exchanged what it is.

    `own` are its parameters and buffers.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        if is_lazy(value) or (isinstance(value, Tensor) and value.is_meta and not shapes_only):
            raise StudyError(
                f"'{name}' of {type(module).__name__} has no values yet (a lazy layer, or one on the meta "
                "device); give layers their sizes, or run one batch through the network, before its weights "
                "are taken and before fit"
            )
        yield name, value, _reason(value, own.get(name))


def _reason(value: object, own: Tensor | None) -> str | None:
    """Return why a value of a state can't be exchanged, None if it can; `own` is the module's own tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}, no tensor"
    if value is not own:
        return "made by the module for each checkpoint (an extra state or a hook), no tensor of its own"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse" if value.layout != torch.strided else "quantised"
    if not value.is_floating_point() and not value.is_complex():
        return _INTEGER
    return None if as_real(value.detach()).dtype in _EXCHANGED else f"of {value.dtype}"


def as_real(tensor: Tensor) -> Tensor:
    """Return a view of a complex tensor with its parts as a last axis of two; any other tensor as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def as_form_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a view of a tensor of `as_real` that is complex if `like` is."""
    return torch.view_as_complex(tensor) if like.is_complex() and not tensor.is_complex() else tensor


def local_names(module: nn.Module, keep_local: Iterable[str]) -> frozenset[str]:
    """Return the names of the tensors that `keep_local` keeps in the hospital.

    Raises:
        StudyError: if an entry matches nothing: it is misspelt, or its submodule has no tensors.
    """
    names: set[str] = set()
    for entry in keep_local:
        matching = _matching_names(module, entry)
        if not matching:
            layers = ", ".join(f"'{name}'" for name, _ in module.named_children())
            raise StudyError(
                f"keep_local: '{entry}' keeps nothing: no layer of that name in {type(module).__name__} has "
                f"weights (it has {layers}); give 'norm', 'head' or a submodule's name or path"
            )
        names |= matching
    return frozenset(names)


def _matching_names(module: nn.Module, entry: str) -> set[str]:
    names: set[str] = set()
    for prefix, child in module.named_modules():
        if (entry == "norm" and isinstance(child, _NORMS)) or f".{entry}." in f".{prefix}.":
            names.update(f"{prefix}.{name}" for name in child.state_dict())
    return names


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@torch.no_grad()
def load(module: nn.Module, weights: Weights) -> None:
    """Copy weights into a module's own tensors, in place, so that optimisers keep their references.

    Raises:
        StudyError: if the module has no tensor of a name, or one of another shape: nothing is broadcast.
    """
    own = getattr(module, "_orig_mod", module).state_dict(keep_vars=True)
    for name, tensor in weights.items():
        target = as_real(own[name].data) if name in own else None
        values = as_real(tensor)
        if target is None or target.shape != values.shape:
            found = "is missing" if target is None else f"has shape {tuple(target.shape)}"
            raise StudyError(
                f"'{for_log(name)}' {found} in {type(module).__name__}, the weights to load have shape "
                f"{tuple(values.shape)}; build the network that the weights were trained with"
            )
        target.copy_(values)


def size_in_bytes(weights: Weights) -> int:
    """Return how much memory the tensors take together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


class Released(dict[str, Tensor]):
    """Weights to which nobody writes any more, so that who gets them in this process need not copy them."""


class Difference(Mapping[str, Tensor]):
    """`minuend - subtrahend`, tensor by tensor, in float64, computed on access.

    In float32 `global + (local - global)` differs from `local` if the two differ by more than a factor of
    two, so a single site would not get its own weights back. In float64 it is equal. The minuend is sent on
    the wire, so that an exact difference costs no more bytes than a rounded one.

    `norm` is its `approximate_norm` where that was measured and is finite, so that all values of the minuend
    are; None where nobody in this process has measured it.
    """

    def __init__(self, minuend: Weights, subtrahend: Weights, norm: float | None = None) -> None:
        self.minuend = minuend
        self.subtrahend = subtrahend
        self.norm = norm

    def __getitem__(self, name: str) -> Tensor:
        return self.minuend[name].double() - self.subtrahend[name].double()

    def __contains__(self, name: object) -> bool:
        return name in self.minuend  # Mapping's default would compute the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.minuend)

    def __len__(self) -> int:
        return len(self.minuend)


def zeros_like(weights: Weights) -> dict[str, Tensor]:
    """Return zeros of the same names, shapes and dtypes."""
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def norm(weights: Weights) -> float:
    """Return the Euclidean norm over all tensors together, summed in float64."""
    sides = (weights.minuend, weights.subtrahend) if isinstance(weights, Difference) else (weights,)
    buffer, total = torch.empty(_BLOCK, dtype=torch.float64), 0.0
    for name in weights:
        values = [side[name].reshape(-1) for side in sides]
        for start in range(0, values[0].numel(), _BLOCK):
            span = slice(start, start + _BLOCK)
            block = buffer[: values[0][span].numel()].copy_(values[0][span])
            if len(values) == 2:
                block.sub_(values[1][span])
            total += float(torch.dot(block, block))
    return float(total**0.5)


def approximate_norm(weights: Weights) -> float:
    """Return the Euclidean norm over all tensors together, to about six digits, in a quarter of the time.

    Float32 tensors are subtracted and squared in float32; where that overflows, or where squares that it
    rounds to zero could matter, the result is `norm`'s.
    """
    sides = (weights.minuend, weights.subtrahend) if isinstance(weights, Difference) else (weights,)
    buffer, total, rounded = torch.empty(_BLOCK), 0.0, False
    for name in weights:
        values = [side[name].reshape(-1) for side in sides]
        if any(value.dtype != torch.float32 for value in values):
            total += norm({name: weights[name]}) ** 2
            continue
        for start in range(0, values[0].numel(), _BLOCK):
            parts = [value[start : start + _BLOCK] for value in values]
            block = torch.sub(*parts, out=buffer[: len(parts[0])]) if len(parts) == 2 else parts[0]
            square = float(torch.dot(block, block))
            total += square
            rounded = rounded or (square <= _SMALL_SQUARES and bool(block.any()))
    exact = isfinite(total) and (total > _SMALL_SQUARES or not rounded)
    return float(total**0.5) if exact else norm(weights)


def digest(weights: Weights) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, sorted by name."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            sha.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return sha.hexdigest()


def is_running_statistic(name: str) -> bool:
    """Return whether a tensor is a batch norm's running statistic: averaged, never extrapolated."""
    return name.rsplit(".", 1)[-1] in _STATISTICS
