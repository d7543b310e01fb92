"""FedAvg as plain training loops, without Lightning, medfed's merge or an exchange, as a reference.

A `Recipe` says how a site trains; `plain_fedavg` trains every site by it, and averages in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROUNDS, RATE = 2, 0.1
SITES = {"north": 12, "south": 20}


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9)


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Recipe:
    """How a site trains; `schedule` makes a schedule of an optimiser that steps at each `interval`."""

    optimiser: Callable[[Any], Any] = sgd
    loss: Callable[[Any, Any], Tensor | None] = entropy
    schedule: Callable[[Any], Any] | None = None
    interval: str = "epoch"
    accumulate: Callable[[int], int] = lambda epoch: 1
    clip: Callable[[Iterable[nn.Parameter]], Any] | None = None
    autocast: torch.dtype | None = None
    limit: int | None = None
    dtype: torch.dtype | None = None


@dataclass
class Site:
    """One site of the reference: its model, optimiser and schedule, which live through all rounds."""

    model: Any
    recipe: Recipe
    optimiser: Any
    schedule: Any = None
    data: Any = None
    notes: dict[str, Any] = field(default_factory=dict)


def train(site: Site, epoch: int) -> None:
    """Train one epoch as a textbook does."""
    recipe, model = site.recipe, site.model
    model.train()
    batches = list(site.data)[: recipe.limit]
    accumulate = recipe.accumulate(epoch)
    for number, batch in enumerate(batches, 1):
        context = torch.autocast("cpu", recipe.autocast) if recipe.autocast else contextlib.nullcontext()
        with context:
            loss = recipe.loss(model, cast(batch, recipe.dtype))
        if loss is None:
            continue
        (loss / accumulate).backward()
        if number % accumulate and number != len(batches):
            continue
        if recipe.clip is not None:
            recipe.clip(model.parameters())
        site.optimiser.step()
        site.optimiser.zero_grad()
        if site.schedule is not None and recipe.interval == "step":
            site.schedule.step()
    if site.schedule is not None and recipe.interval == "epoch":
        site.schedule.step()


def cast(batch: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return batch
    return [part.to(dtype) if part.is_floating_point() else part for part in batch]


def plain_fedavg(
    make: Callable[[], nn.Module],
    recipe: Recipe,
    data: Callable[[str], Any],
    *,
    examples: dict[str, int],
    train: Callable[[Site, int], None] = train,
    shared: Callable[[str], bool] = lambda name: True,
    after_merge: Callable[[Site, int], None] = lambda site, epoch: None,
) -> tuple[dict[str, Tensor], dict[str, Site]]:
    """Return the merged tensors after the last round, and the sites."""
    sites = {}
    for name in examples:
        model = make()
        merged = {key: value.clone() for key, value in tensors(model).items() if shared(key)}
        if recipe.dtype is not None:
            model = model.to(recipe.dtype)
        optimiser = recipe.optimiser(model)
        schedule = recipe.schedule(optimiser) if recipe.schedule else None
        sites[name] = Site(model, recipe, optimiser, schedule, data(name))
    total = sum(examples.values())
    for epoch in range(ROUNDS):
        for site in sites.values():
            train(site, epoch)
        for key, value in merged.items():
            parts = [wide(tensors(sites[name].model)[key]) * (examples[name] / total) for name in examples]
            merged[key] = sum(parts).to(value.dtype)
        for site in sites.values():
            with torch.no_grad():
                for key, value in merged.items():
                    tensors(site.model)[key].copy_(value)
            after_merge(site, epoch)
    return merged, sites


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's own floating-point and complex parameters and persistent buffers."""
    return {
        key: value
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    }


def wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
