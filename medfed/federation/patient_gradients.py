"""Gradients of single patients: each computed alone or several at once, averaged over copies, and clipped.

Augmentation multiplicity: De, Berrada, Hayes, Smith, Balle: Unlocking High-Accuracy Differentially Private
Image Classification through Scale, 2022, arXiv:2204.13650. The gradient of a patient is the mean over several
augmented copies and is clipped after that, so a patient still changes a step's sum by at most the clip, and
the accountant counts the same as for one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from medfed.privacy._clipping import SLACK

if TYPE_CHECKING:
    import pytorch_lightning as pl

# The gradients of some patients, each (patients, *shape) in the order of `trained`, and their losses.
Gradients = tuple[list[Tensor], Tensor]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def clipped_sum(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """Return the sum over patients of gradients (patients, *shape), float64, each patient's clipped first.

    A patient's gradient is clipped by its norm over all tensors. One that isn't finite counts as zero: an
    error would reveal that such a patient exists.
    """
    square = torch.stack([g.flatten(1).double().square().sum(1) for g in gradients]).sum(0)
    length, bound = square.sqrt(), clip * (1 - SLACK)
    scale = torch.where(length <= bound, torch.ones_like(length), bound / length)
    finite = torch.isfinite(length)
    scale = torch.where(finite, scale, torch.zeros_like(scale))
    total = []
    for gradient in gradients:
        usable = gradient if bool(finite.all()) else gradient.nan_to_num(0.0, 0.0, 0.0)
        total.append(torch.tensordot(scale, usable.double(), dims=1))
    return total


def mean_over_copies(
    gradients_of: Callable[[Sequence[Any]], Gradients], patients: Sequence[Sequence[Any]]
) -> Gradients:
    """Return the gradients and losses of some patients, each the mean over the patient's copies.

    A patient is a list of batches, one per copy; all patients have the same number. `gradients_of` is given
    one copy of every patient at a time, so no more is in memory than for one copy, and the sum.
    """
    copies = list(zip(*patients, strict=True))
    total, losses = gradients_of(copies[0])
    for copy in copies[1:]:
        found, lost = gradients_of(copy)
        # Not in place: autograd may return one tensor for two parameters.
        total, losses = [a + b for a, b in zip(total, found, strict=True)], losses + lost
    return [tensor / len(copies) for tensor in total], losses / len(copies)


def loss_of(module: pl.LightningModule, batch: Any) -> Tensor:
    """Return the training loss of one patient's batch, from the module's `loss` or its training_step."""
    own = getattr(module, "loss", None)
    # The class's method: the instance's attribute is the one that PrivateTraining put there.
    result: Any = own(batch) if callable(own) else type(module).training_step(module, batch, 0)
    loss: Tensor = result["loss"] if isinstance(result, dict) else result
    return loss


def single_gradient(module: pl.LightningModule, batch: Any) -> tuple[list[Tensor], Tensor]:
    """Return the gradient of one patient's loss, each (1, *shape), by an ordinary backward pass."""
    parameters = list(trained(module).values())
    loss = loss_of(module, batch)
    with torch.autocast(loss.device.type, enabled=False):
        computed = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = [
        (torch.zeros_like(p) if g is None else g)[None] for p, g in zip(parameters, computed, strict=True)
    ]
    return gradients, loss.detach()


class _Loss(nn.Module):
    """A module's loss as a forward pass, which is what torch.func calls."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.inner = module

    def forward(self, batch: Any) -> Tensor:
        return loss_of(self.inner, batch)


def many_gradients(module: pl.LightningModule, batches: Sequence[Any]) -> tuple[list[Tensor], Tensor]:
    """Return the gradients (patients, *shape) of several patients at once, and their losses.

    The patients' batches must have the same shapes.

    Raises:
        RuntimeError: if torch.func can't batch an operation of the network or the loss.
    """
    if not callable(getattr(module, "loss", None)):
        raise NotImplementedError("a training_step logs, which a batched function cannot do")
    flat = [tree_flatten(batch) for batch in batches]
    shape = flat[0][1]
    places = [i for i, leaf in enumerate(flat[0][0]) if isinstance(leaf, Tensor)]
    stacked = [torch.stack([_plain(leaves[i]) for leaves, _ in flat]) for i in places]
    wrapped = _Loss(module)
    parameters = {f"inner.{name}": p.detach() for name, p in trained(module).items()}

    def loss(values: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
        leaves = list(flat[0][0])
        for place, tensor in zip(places, tensors, strict=True):
            leaves[place] = tensor
        value: Tensor = torch.func.functional_call(wrapped, values, (tree_unflatten(leaves, shape),))
        return value

    both = torch.func.vmap(
        torch.func.grad_and_value(loss), in_dims=(None, 0), out_dims=0, randomness="different"
    )
    with _OutOfPlace():
        gradients, losses = both(parameters, stacked)
    return list(gradients.values()), losses


class _OutOfPlace(TorchFunctionMode):
    """Makes `scatter_` write into a copy, since vmap can't fill MONAI's one-hot zeros in place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (Tensor.scatter if func is Tensor.scatter_ else func)(*args, **(kwargs or {}))


def _plain(tensor: Tensor) -> Tensor:
    as_tensor = getattr(tensor, "as_tensor", None)
    plain: Tensor = tensor if as_tensor is None else as_tensor()
    return plain


def alike(batches: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """Yield the batches in groups of at most `most`, which can be stacked as their tensor shapes match."""
    groups: dict[Any, list[Any]] = {}
    for batch in batches:
        leaves = tree_flatten(batch)[0]
        key = tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else None for leaf in leaves)
        groups.setdefault(key, []).append(batch)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]
