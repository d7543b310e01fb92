"""Compare a site's epoch with a bare PyTorch loop and with Lightning alone, on the same cached data.

    python benchmarks/epoch.py [--threads 1 2] [--repeats 3] [--only unet,classifier,mlp]
    python benchmarks/epoch.py --short                      # one thread, one repeat, short epochs: a minute
    python benchmarks/epoch.py --profile mlp [--threads 1]  # medfed's own functions in an epoch, by time

Three trainings: a 3D U-Net on patches of 48 cubed, a small 2D classifier on 32x32 images, and an MLP on a
table. Each is done by four ways, with the same tensors in memory, the same loader and the same module:

- `loop`: a loop over the loader, in the main thread, without any framework;
- `barebones`: Lightning's `Trainer(barebones=True)`, which logs nothing and calls as little as it can: the
  least that Trainer settings can give back;
- `lightning`: the Trainer that medfed builds for a site (`trainer_of`), without a federated callback;
- `medfed`: `train_site` over the memory exchange, in a simulation of one site, with its checkpoints.

An epoch is timed from its first batch's start to its last batch's end, by the loop's own clock or a callback.
The epoch of a merge is left out: what a round costs is measured by simulation.py. Each way runs in a process
of its own, in turn, and the least epoch counts, in CPU seconds of all threads and in seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from comparison import Comparison, in_a_process, print_rows

WAYS = ("loop", "barebones", "lightning", "medfed")
# Rounds of a run of medfed's, and epochs between two merges, of which the last is left out.
ROUNDS, LOCAL_EPOCHS = 2, 6

# The most that medfed's epoch may take, as a multiple of Lightning alone and of the loop.
BARS = {"unet": (1.03, 1.06), "classifier": (1.05, None), "mlp": (1.05, None)}


class Training(NamedTuple):
    """What is trained: the input's shape, the batch size, and the steps of an epoch."""

    shape: tuple[int, ...]
    batch: int
    steps: int


TRAININGS = {
    "unet": Training((1, 48, 48, 48), 2, 8),
    "classifier": Training((1, 32, 32), 16, 100),
    "mlp": Training((20,), 16, 300),
}


def network(name: str) -> Any:
    """Return the untrained network of a training, the same at every call."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "unet":
        from monai.networks.nets import UNet

        return UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="instance")
    if name == "classifier":
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def module(name: str) -> Any:
    """Return the network as a LightningModule that logs what medfed's tasks log."""
    import pytorch_lightning as pl
    import torch
    from torch.nn import functional

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(name)

        def training_step(self, batch: Any, index: int) -> Any:
            image, target = batch
            loss = functional.cross_entropy(self.network(image), target)
            self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(image))
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val/loss", functional.cross_entropy(self.network(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Module()


def loader(name: str, steps: int) -> Any:
    """Return the loader of the cached data, in a fixed order."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    shape, batch, _ = TRAININGS[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(steps * batch, *shape, generator=generator)
    size = (steps * batch, *(shape[1:] if name == "unet" else ()))
    targets = torch.randint(0, 2, size, generator=generator)
    return DataLoader(TensorDataset(images, targets), batch)


class Clock:
    """Keeps the seconds and CPU seconds of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, float]] = []

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.epochs.append((time.perf_counter() - self._began[0], time.process_time() - self._began[1]))


def clock_callback(clock: Clock, profiler: cProfile.Profile | None = None) -> Any:
    """Return a callback that times each epoch, and profiles those after the first."""
    import pytorch_lightning as pl

    class Timer(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            clock.start()
            if profiler is not None and clock.epochs:
                profiler.enable()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if profiler is not None:
                profiler.disable()
            clock.stop()

    return Timer()


def loop(name: str, steps: int, clock: Clock) -> None:
    """Train without any framework."""
    import torch
    from torch.nn import functional

    net, data = network(name), loader(name, steps)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(ROUNDS * LOCAL_EPOCHS):
        clock.start()
        total = torch.zeros(())
        for image, target in data:
            loss = functional.cross_entropy(net(image), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        clock.stop()


def barebones(name: str, steps: int, clock: Clock) -> None:
    """Train with Lightning's least Trainer."""
    import pytorch_lightning as pl

    epochs = ROUNDS * LOCAL_EPOCHS
    net, callback = module(name), clock_callback(clock)
    # A bare Trainer takes no callback, so the module's own hooks keep the time.
    net.on_train_epoch_start = lambda: callback.on_train_epoch_start(None, net)
    net.on_train_epoch_end = lambda: callback.on_train_epoch_end(None, net)
    pl.Trainer(barebones=True, max_epochs=epochs, accelerator="cpu").fit(net, loader(name, steps))


def site_data(name: str, steps: int) -> Any:
    """Return the data module of a site; one batch validates, in the epochs of a merge, which do not count."""
    import pytorch_lightning as pl

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(name, steps)

        def val_dataloader(self) -> Any:
            return loader(name, 1)

    return Data()


def lightning(name: str, steps: int, clock: Clock, profiler: cProfile.Profile | None = None) -> None:
    """Train with the Trainer of a site, alone."""
    from medfed.federation.config import SiteConfig
    from medfed.federation.site import trainer_of

    config = SiteConfig(ROUNDS * LOCAL_EPOCHS, local_epochs=LOCAL_EPOCHS, accelerator="cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, Path(folder), [clock_callback(clock, profiler)])
        trainer.fit(module(name), datamodule=site_data(name, steps))


def medfed_site(name: str, steps: int, clock: Clock, profiler: cProfile.Profile | None = None) -> None:
    """Train one site of a simulation."""
    import medfed
    from medfed.federation.config import SiteConfig
    from medfed.federation.site import SiteRun, train_site

    def site(exchange: Any) -> None:
        config = SiteConfig(ROUNDS * LOCAL_EPOCHS, local_epochs=LOCAL_EPOCHS, accelerator="cpu")
        with tempfile.TemporaryDirectory() as folder:
            run = SiteRun(Path(folder), callbacks=[clock_callback(clock, profiler)])
            train_site("north", module(name), site_data(name, steps), exchange, config, run)

    start = medfed.weights_of(module(name))
    medfed.run_federation({"north": site}, start, rule="fedavg", rounds=ROUNDS)


def measured(name: str, way: str, steps: int) -> tuple[float, float]:
    """Return the least seconds and CPU seconds of an epoch, without the first and those of a merge."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    clock = Clock()
    ways = {"loop": loop, "barebones": barebones, "lightning": lightning, "medfed": medfed_site}
    ways[way](name, steps, clock)
    merged = range(LOCAL_EPOCHS - 1, len(clock.epochs), LOCAL_EPOCHS)
    epochs = [one for number, one in enumerate(clock.epochs) if number and number not in merged]
    return min(wall for wall, _ in epochs), min(cpu for _, cpu in epochs)


def least(name: str, threads: int, repeats: int, steps: int) -> dict[str, tuple[float, float]]:
    """Return the least of each way, which take turns."""
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    for _ in range(repeats):
        for way in WAYS:
            found[way].append(in_a_process(__file__, "--one", name, way, str(steps), env=env))
    return {way: (min(one[0] for one in rows), min(one[1] for one in rows)) for way, rows in found.items()}


def compare(
    short: bool, threads: tuple[int, ...] = (1, 2), repeats: int = 3, only: tuple[str, ...] = tuple(BARS)
) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`, by the wall clock with one thread, by CPU with more."""
    for name in only:
        for count in threads[:1] if short else threads:
            steps = max(2, TRAININGS[name].steps // (4 if short else 1))
            found = least(name, count, 1 if short else repeats, steps)
            what = f"epoch, {name}, {count} thread{'s' if count > 1 else ''}"
            settings = found["barebones"][1] / found["loop"][1]
            for way, bar in zip(("lightning", "loop"), BARS[name], strict=True):
                wall = found["medfed"][0] / found[way][0]
                note = f"by the wall clock {wall:.2f}"
                if way == "loop":
                    note += f"; a bare Trainer alone {settings:.2f}"
                yield Comparison(what, found["medfed"][1], "CPU s", way, found[way][1], bar, note)


def print_profile(name: str, steps: int) -> None:
    """Print the functions in which medfed's epochs differ from Lightning's, by their own time."""
    table: dict[str, dict[str, float]] = {}
    for way, train in (("lightning", lightning), ("medfed", medfed_site)):
        profiler, clock = cProfile.Profile(), Clock()
        train(name, steps, clock, profiler)
        for (file, line, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
            place = f"{'/'.join(Path(file).parts[-3:])}:{line} {function}"
            table.setdefault(place, {})[way] = own / (len(clock.epochs) - 1) * 1000
    print("| function | ms per epoch, lightning | ms per epoch, medfed | more |\n|---|---|---|---|")
    more = {place: one.get("medfed", 0) - one.get("lightning", 0) for place, one in table.items()}
    for place in sorted(more, key=lambda place: -more[place])[:15]:
        one = table[place]
        print(f"| {place} | {one.get('lightning', 0):.2f} | {one.get('medfed', 0):.2f} | {more[place]:.2f} |")


def main() -> None:
    """Print the table, or a profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(TRAININGS))
    parser.add_argument("--short", action="store_true", help="one thread, one repeat, short epochs")
    parser.add_argument("--profile", choices=list(TRAININGS))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, way, steps = given.one
        sys.stdout.write(json.dumps(measured(name, way, int(steps))) + "\n")
    elif given.profile:
        print_profile(given.profile, TRAININGS[given.profile].steps)
    else:
        only = tuple(given.only.split(","))
        print_rows(compare(given.short, tuple(given.threads), given.repeats, only))


if __name__ == "__main__":
    main()
