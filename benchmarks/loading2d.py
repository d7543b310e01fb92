"""Compare one epoch over a class folder of PNG with torchvision's ImageFolder, with the same workers.

    python benchmarks/loading2d.py [--images 5000] [--side 512] [--workers 0,2] [--repeats 3] [--folder F]
                                   [--clock wall|cpu] [--colour]

The images are 8-bit radiograph-like pictures in two class folders, written by this script. Both sides decode
each file, and give batches of float32 tensors; nothing is cached. torchvision's side is its usual one,
`ImageFolder(ToTensor())`, in RGB, and `grey` the same with a conversion to one channel. medfed's side is its
site's data module with `normalise: percentile`, and `window` with a fixed range. The table gives images per
second, and medfed's as a multiple of each of torchvision's. The loaders take turns, and each rate is the
best of its turns. `--clock cpu` counts images per CPU second of this process and its workers, which depends
less on what else the machine does. `--colour` writes pictures in RGB, for a study of three channels.
torchvision is not one of medfed's packages:

    pip install --no-deps --target /some/folder torchvision
    PYTHONPATH=/some/folder python benchmarks/loading2d.py
    PYTHONPATH=/some/folder python benchmarks/loading2d.py --images 100 --repeats 1 --workers 0  # short
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

BATCH = 16
CLASSES = ("normal", "pneumonia")


def write(folder: Path, images: int, side: int, colour: bool) -> None:
    """Write the class folders, half of the images in each."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(_write_one, repeat(folder), range(images), repeat(side), repeat(colour), chunksize=64))


def _write_one(folder: Path, number: int, side: int, colour: bool) -> None:
    from PIL import Image

    generator = np.random.default_rng(number)
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    lungs = 90 + 80 * np.exp(-6 * ((np.abs(x) - 0.45) ** 2 + 0.5 * y**2)) + generator.normal(0, 4, x.shape)
    if colour:
        lungs = lungs[..., None] * (1.0, 0.7, 0.6) + generator.normal(0, 1, (*x.shape, 3))
    picture = Image.fromarray(np.clip(lungs, 0, 255).astype(np.uint8))
    picture.save(folder / CLASSES[number % 2] / f"{number:05d}.png")


def torchvision_loader(folder: Path, workers: int, grey: bool) -> Iterable[Any]:
    """Return ImageFolder's batches."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [transforms.Grayscale()] if grey else []
    dataset = datasets.ImageFolder(str(folder), transforms.Compose([*steps, transforms.ToTensor()]))
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)


def medfed_loader(folder: Path, workers: int, normalise: str, channels: int) -> Iterable[Any]:
    """Return the training batches of a site with this folder."""
    from medfed.data.datamodule import SiteDataModule
    from medfed.data.normalise.percentile import Percentile
    from medfed.data.normalise.window import Window
    from medfed.data.settings import Images

    settings = Images(
        spatial_dims=2,
        channels=channels,
        spacing_mm="native",
        patch=None,
        augment="none",
        cache="none",
        workers=workers,
        normalise=Percentile() if normalise == "percentile" else Window(low=0, high=255),
        fractions=(1.0, 0.0, 0.0),
    )
    data = SiteDataModule.open(
        folder, settings, "classify", site_secret=b"benchmark" * 4, classes=2, batch=BATCH
    )
    return data.train_dataloader()


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def images_per_s(loader: Iterable[Any], clock: Callable[[], float]) -> float:
    """Return the rate of one epoch, by a clock in seconds."""
    start, images = clock(), 0
    for batch in loader:
        images += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return images / (clock() - start)


def rates(folder: Path, workers: int, colour: bool, repeats: int, clock: Callable[[], float]) -> list[float]:
    """Return the best rate of each loader, which take turns."""
    channels = 3 if colour else 1
    loaders = (
        torchvision_loader(folder, workers, False),
        torchvision_loader(folder, workers, True),
        medfed_loader(folder, workers, "percentile", channels),
        medfed_loader(folder, workers, "window", channels),
    )
    turns = [[images_per_s(loader, clock) for loader in loaders] for _ in range(repeats)]
    return [max(rates) for rates in zip(*turns, strict=True)]


def main() -> None:
    """Write the images, load them both ways and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="written once, and read again by later calls")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--colour", action="store_true")
    given = parser.parse_args()
    if importlib.util.find_spec("torchvision") is None:
        parser.error("torchvision is not installed, and not one of medfed's packages; --help says how")
    clock = cpu_s if given.clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)) / "classes"
        if not folder.is_dir():
            write(folder, given.images, given.side, given.colour)
        print(
            f"{given.images} PNG of {given.side} x {given.side}, images per second ({given.clock}), "
            f"best of {given.repeats}"
        )
        heads = ("ImageFolder", "ImageFolder, grey", "medfed", "medfed, window")
        print(f"{'workers':>7} " + " ".join(f"{head:>18}" for head in heads) + "   medfed / ImageFolder")
        for workers in map(int, given.workers.split(",")):
            best = rates(folder, workers, given.colour, given.repeats, clock)
            ratios = f"{best[2] / best[0]:.2f} (grey {best[2] / best[1]:.2f})"
            print(f"{workers:7} " + " ".join(f"{rate:18.0f}" for rate in best) + f"   {ratios}", flush=True)


if __name__ == "__main__":
    main()
