"""Measure data preparation: resampling, the cache, the loading of an epoch, and `medfed check`.

    python benchmarks/preparing.py [--only resampling,crops,epoch,check] [--cases 200]
    python benchmarks/preparing.py --cases 8  # short: minutes

Each section prints a table. CPU milliseconds are those of this process and its finished children, the best of
the repeats; wall times are less reliable on a busy machine. Where MONAI has an equivalent (`Spacing`, and
`PersistentDataset` with `RandCropByPosNegLabel`), it does the same work for comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from medfed.data.cache_location import CacheLocation
from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Images

SECRET = b"of a benchmark, and of no hospital"


def best(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the lowest CPU and wall milliseconds of the repeats."""
    took = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        took.append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)))
    return min(cpu for cpu, _ in took), min(wall for _, wall in took)


def body(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a CT-like int16 volume in HU and a binary label."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    inside = x**2 + 1.4 * y**2 + 0 * z < 0.6
    soft = 40 + 20 * np.sin(5 * x) * np.cos(4 * y) + random.normal(0, 10, shape)
    where = random.uniform(-0.3, 0.3, 3)
    label = (x - where[0]) ** 2 + (y - where[1]) ** 2 + (z - where[2]) ** 2 < 0.03
    return np.where(inside, soft + 60 * label, -1000).astype(np.int16), label.astype(np.uint8)


def hospital(folder: Path, cases: int, shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    """Write a hospital's folder of images and labels."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        for name, array in zip(("images", "labels"), body(shape, number), strict=True):
            image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / name / f"case{number:03d}.nii.gz")


def resampling() -> None:
    """Compare medfed with MONAI's Spacing in time and in error against float64 interpolation."""
    from monai.data import MetaTensor
    from monai.transforms import Spacing
    from scipy.ndimage import map_coordinates

    from medfed.data.resample import resample
    from medfed.data.transforms import _resampled_grid

    print(f"{'resampling, one thread':44} {'medfed ms':>9} {'MONAI ms':>9} {'times':>6} {'off by, HU':>20}")
    for shape, of, to in (
        ((256, 256, 64), (0.8, 0.8, 2.5), (1.0, 1.0, 1.0)),
        ((256, 256, 100), (0.8, 0.8, 1.0), (1.5, 1.5, 2.0)),
        ((160, 160, 160), (1.0, 1.0, 1.0), (0.8, 0.8, 0.8)),
    ):
        array = body(shape, 0)[0][None].astype(np.float32)
        affine = np.diag([*of, 1.0])
        spacing = Spacing(to, mode="bilinear", padding_mode="border", dtype=np.float32)
        whole = torch.from_numpy(array)
        results: dict[str, np.ndarray] = {}

        def monai(spacing=spacing, whole=whole, affine=affine, results=results) -> None:
            results["monai"] = spacing(MetaTensor(whole, affine=torch.from_numpy(affine))).numpy()

        def medfed(array=array, affine=affine, to=to, results=results) -> None:
            to_affine, to_shape = _resampled_grid(array.shape[1:], affine, to)
            results["medfed"] = resample(array, affine, to_affine, to_shape, nearest=False)

        theirs, ours = best(monai, 5)[0], best(medfed, 5)[0]
        at = [
            np.clip(np.arange(n) * t / s, 0, m - 1)
            for n, t, s, m in zip(results["medfed"].shape[1:], to, of, shape, strict=True)
        ]
        exact = map_coordinates(array[0].astype(float), np.meshgrid(*at, indexing="ij"), order=1)
        off = {name: np.abs(found[0] - exact).max() for name, found in results.items()}
        name = f"{' x '.join(map(str, shape))} of {of} to {to} mm"
        print(
            f"{name:44} {ours:9.0f} {theirs:9.0f} {theirs / ours:6.1f}    {off['medfed']:.4f} and "
            f"{off['monai']:.4f}"
        )


def opened(folder: Path, settings: Images, batch: int = 1) -> SiteDataModule:
    return SiteDataModule.open(
        folder / "data",
        settings,
        "segment",
        site_secret=SECRET,
        classes=2,
        batch=batch,
        cache=CacheLocation(folder / "cache"),
    )


def crops(folder: Path) -> None:
    """Print the cost of drawing two random patches of 96 cubed from a case."""
    from monai.data import PersistentDataset
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        RandCropByPosNegLabeld,
        ScaleIntensityRangePercentilesd,
        Spacingd,
    )

    hospital(folder / "data", 8, (256, 256, 128), (1.0, 1.0, 1.0))
    settings = Images(spacing_mm=(1.0, 1.0, 1.0), patch=(96, 96, 96), samples=2, augment="none", cache="disk")
    data = opened(folder, settings)
    ours = data.dataset("train", training=True)
    keys = ["image", "label"]
    steps = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, pixdim=(1.0, 1.0, 1.0), mode=["bilinear", "nearest"]),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, -1, 1, clip=True),
            RandCropByPosNegLabeld(keys, label_key="label", spatial_size=(96, 96, 96), num_samples=2),
        ]
    )
    files = [
        {"image": str(path), "label": str(folder / "data" / "labels" / path.name)}
        for path in sorted((folder / "data" / "images").iterdir())
    ]
    theirs = PersistentDataset(files, steps, cache_dir=folder / "monai")
    rounds = 5
    print(f"\n{'two patches of 96 cubed from 256 x 256 x 128':44} {'CPU ms':>9} {'wall ms':>9}")
    for name, visit in (
        ("medfed, cache: disk", lambda k: (ours[2 * k], ours[2 * k + 1])),
        ("MONAI PersistentDataset", lambda k: theirs[k]),
    ):
        count = len(ours) // 2 if name.startswith("medfed") else len(files)
        for k in range(count):
            visit(k)  # fills the cache
        cpu, wall = best(lambda visit=visit, count=count: [visit(k) for k in range(count)], rounds)
        print(f"{name:44} {cpu / count:9.1f} {wall / count:9.1f}")


def epoch(folder: Path) -> None:
    """Print the share of a cached epoch spent waiting for the loader."""
    from medfed.models.networks.unet import UNet

    hospital(folder / "data", 8, (192, 192, 96), (1.0, 1.0, 1.5))
    print(
        f"\n{'an epoch of 6 cases, patches of 96 cubed':44} {'s':>6} {'loader s':>9} {'share':>6} "
        f"{'ms a patch':>11}"
    )
    for augment in ("none", "default"):
        settings = Images(
            spacing_mm=(1.0, 1.0, 1.0),
            patch=(96, 96, 96),
            cache="disk",
            fractions=(0.8, 0.1, 0.1),
            **({"augment": "none"} if augment == "none" else {}),
        )
        data = opened(folder, settings, batch=2)
        network = UNet().build(1, 2, settings.patch)
        optimiser = torch.optim.SGD(network.parameters(), 0.01)
        for number in range(2 if augment == "none" else 1):
            waited, patches = 0.0, 0
            began = time.perf_counter()
            batches = iter(data.train_dataloader())
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
                if batch is None:
                    break
                loss = torch.nn.functional.cross_entropy(network(batch["image"]), batch["label"][:, 0])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                patches += len(batch["image"])
            took = time.perf_counter() - began
            name = (
                "first, which fills the cache"
                if number == 0 and augment == "none"
                else f"from the cache, augmentation {augment}"
            )
            print(f"{name:44} {took:6.1f} {waited:9.2f} {waited / took:6.1%} {1000 * waited / patches:11.1f}")


def check(folder: Path, cases: int) -> None:
    """Print how long `medfed check` takes for a hospital, in its own process."""
    hospital(folder / "data", cases, (160, 192, 64), (1.0, 1.0, 2.0))
    size = sum(path.stat().st_size for path in (folder / "data").rglob("*.nii.gz")) / 1e6
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "medfed.cli", "check", str(folder / "data")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    took = time.perf_counter() - began
    print(
        f"\nmedfed check, {cases} cases of 160 x 192 x 64 with labels, {size:.0f} MB: {took:.0f} s by the "
        "wall"
    )
    print(done.stdout.splitlines()[0] if done.stdout else done.stderr[-500:])


def main() -> None:
    """Run the selected sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="resampling,crops,epoch,check")
    parser.add_argument("--cases", type=int, default=200)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    threads = torch.get_num_threads()
    for section in given.only.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.set_num_threads(threads if section == "epoch" else 1)
            if section == "resampling":
                resampling()
            elif section == "crops":
                crops(folder)
            elif section == "epoch":
                epoch(folder)
            else:
                check(folder, given.cases)


if __name__ == "__main__":
    main()
