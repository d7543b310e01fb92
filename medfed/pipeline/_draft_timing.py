"""A short timing of this machine: what a training step and a prediction take with each network of a draft.

On processors the seconds are those that the process was given, divided by its threads, so that other programs
that run at the same time do not change the plan. On a GPU they are those of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
import yaml
from torch import nn

from medfed.data.image_transforms._transform import augment_all
from medfed.data.proposal import propose_patch
from medfed.data.settings import Images
from medfed.data.transforms import augmentation
from medfed.models.losses.dicece import DiceCE
from medfed.models.networks import Network as Record
from medfed.pipeline._draft_recipe import BATCH, NETWORKS, Machine, Network, Timing
from medfed.registry import union

# Each is done once to warm up, and the least of so many further times counts.
REPEATS = 2
AUGMENTED = 8


def time_machine(
    inputs: int, classes: int, size: Sequence[float], spacing: Sequence[float], voxels: int, settings: Images
) -> Machine:
    """Return the timing of each network on a patch of the median image, within `voxels`.

    `size` and `spacing` (mm) are those of the median image; `settings` say how images are augmented.
    """
    x, y, z = propose_patch(np.asarray(size, np.float64), np.asarray(spacing, np.float64), voxels)
    patch = (x, y, z)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    words = "1 GPU" if device.type == "cuda" else f"{threads} thread{'' if threads == 1 else 's'}"
    item_s = _item_seconds(inputs, patch, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        timings = tuple(_time(network, inputs, classes, patch, device, item_s) for network in NETWORKS)
    return Machine(words, patch, timings)


def built(network: Network, inputs: int, classes: int, patch: tuple[int, ...]) -> nn.Module:
    """Return a network of the recipe."""
    record: Record = msgspec.convert(yaml.safe_load("\n".join(network.lines)), union("networks"))
    return record.build(inputs, classes, patch)


def _time(
    network: Network,
    inputs: int,
    classes: int,
    patch: tuple[int, ...],
    device: torch.device,
    item_s: float,
) -> Timing:
    module = built(network, inputs, classes, patch).to(device)
    optimiser = torch.optim.AdamW(module.parameters())
    criterion = DiceCE().build(classes)
    image = torch.randn(BATCH, inputs, *patch, device=device)
    label = torch.randint(0, classes, (BATCH, 1, *patch), device=device)

    def step() -> None:
        outputs = module(image)
        levels = outputs.unbind(1) if outputs.ndim > image.ndim else (outputs,)
        loss = torch.stack([criterion(one, label) for one in levels]).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()

    step_s = _least(step, device)
    module.eval()
    with torch.inference_mode():
        window_s = _least(lambda: module(image[:1]), device)
    return Timing(step_s, item_s, window_s)


def _item_seconds(inputs: int, patch: tuple[int, ...], settings: Images) -> float:
    """Return what one patch's augmentation takes, on average."""
    image = np.random.default_rng(0).normal(0, 1, (inputs, *patch)).astype(np.float32)
    label = (image[:1] > 1).astype(np.int64)
    change = augmentation(settings.augment, True, "RAS")

    def item(seed: int) -> None:
        data = {"image": torch.from_numpy(image.copy()), "label": torch.from_numpy(label.astype(np.float32))}
        if change is not None:
            change.set_random_state(seed)
            data = change(data)
        augment_all(
            settings.transforms,
            np.asarray(data["image"]),
            np.asarray(data["label"]).astype(np.int64),
            np.random.default_rng(seed),
        )

    def several() -> None:
        for seed in range(AUGMENTED):
            item(seed)

    return _least(several, torch.device("cpu")) / AUGMENTED


def _least(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds that work took, after one time to warm up."""
    seconds = []
    for _ in range(1 + REPEATS):
        began = _clock(device)
        work()
        seconds.append(_clock(device) - began)
    return min(seconds[1:])


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()
