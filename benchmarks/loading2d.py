"""Compare one epoch over a class folder of PNG with torchvision's ImageFolder, with the same workers.

    python benchmarks/loading2d.py [--images 5000] [--side 512] [--workers 0,2] [--repeats 3] [--folder F]

The images are 8-bit radiograph-like pictures in two class folders, written by this script. Both sides decode
each file, and give batches of float32 tensors; nothing is cached. torchvision's side is its usual one,
`ImageFolder(ToTensor())`, in RGB, and `grey` the same with a conversion to one channel. medfed's side is its
site's data module with `normalise: percentile`, and `window` with a fixed range. The table gives images per
second, and medfed's as a multiple of each of torchvision's. torchvision is not one of medfed's packages:

    pip install --no-deps --target /some/folder torchvision
    PYTHONPATH=/some/folder python benchmarks/loading2d.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

BATCH = 16
CLASSES = ("normal", "pneumonia")


def write(folder: Path, images: int, side: int) -> None:
    """Write the class folders, half of the images in each."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(_write_one, repeat(folder), range(images), repeat(side), chunksize=64))


def _write_one(folder: Path, number: int, side: int) -> None:
    from PIL import Image

    generator = np.random.default_rng(number)
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    lungs = 90 + 80 * np.exp(-6 * ((np.abs(x) - 0.45) ** 2 + 0.5 * y**2)) + generator.normal(0, 4, x.shape)
    picture = Image.fromarray(np.clip(lungs, 0, 255).astype(np.uint8))
    picture.save(folder / CLASSES[number % 2] / f"{number:05d}.png")


def torchvision_loader(folder: Path, workers: int, grey: bool) -> Iterable[Any]:
    """Return ImageFolder's batches."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [transforms.Grayscale()] if grey else []
    dataset = datasets.ImageFolder(str(folder), transforms.Compose([*steps, transforms.ToTensor()]))
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)


def medfed_loader(folder: Path, workers: int, normalise: str) -> Iterable[Any]:
    """Return the training batches of a site with this folder."""
    from medfed.data.datamodule import SiteDataModule
    from medfed.data.normalise.percentile import Percentile
    from medfed.data.normalise.window import Window
    from medfed.data.settings import Images

    settings = Images(
        spatial_dims=2,
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


def images_per_s(loader: Iterable[Any], repeats: int) -> float:
    """Return the best rate over a few epochs."""
    rates = []
    for _ in range(repeats):
        start, images = time.perf_counter(), 0
        for batch in loader:
            images += len(batch["image"] if isinstance(batch, dict) else batch[0])
        rates.append(images / (time.perf_counter() - start))
    return max(rates)


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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)) / "classes"
        if not folder.is_dir():
            write(folder, given.images, given.side)
        print(
            f"{given.images} PNG of {given.side} x {given.side}, images per second, best of {given.repeats}"
        )
        heads = ("ImageFolder", "ImageFolder, grey", "medfed", "medfed, window")
        print(f"{'workers':>7} " + " ".join(f"{head:>18}" for head in heads) + "   medfed / ImageFolder")
        for workers in map(int, given.workers.split(",")):
            rates = [
                images_per_s(loader, given.repeats)
                for loader in (
                    torchvision_loader(folder, workers, False),
                    torchvision_loader(folder, workers, True),
                    medfed_loader(folder, workers, "percentile"),
                    medfed_loader(folder, workers, "window"),
                )
            ]
            ratios = f"{rates[2] / rates[0]:.2f} (grey {rates[2] / rates[1]:.2f})"
            print(f"{workers:7} " + " ".join(f"{rate:18.0f}" for rate in rates) + f"   {ratios}")


if __name__ == "__main__":
    main()
