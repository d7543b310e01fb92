"""Compare segmentation of whole volumes with MONAI's sliding window, and the memory of 200 cases with two.

    python benchmarks/inference.py [--cases 200]
    python benchmarks/inference.py --short  # 20 cases: a minute or two

Windows: `predict_step` of the quickstart's task against `monai.inferers.sliding_window_inference` and a
softmax and argmax, of the same network with the same windows, on a volume of 96 cubed; both must give the
same probabilities and labels, and take turns.

Cases: `medfed predict` of the quickstart's untrained network on copies of sample_data/university, read,
prepared, predicted, restored to their own grid and written, against MONAI's transforms and writer around its
sliding window (LoadImaged, Orientationd, Spacingd, ScaleIntensityRangePercentilesd, Invertd, SaveImage). Each
runs in a process of its own. Memory is the peak of the process, of all cases and of two.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison import Comparison, in_a_process, print_rows

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "configs" / "quickstart.yaml"
IMAGES = ROOT / "sample_data" / "university" / "images"
SIDE, TURNS = 96, 5

# The most that windows may take as a multiple of MONAI's: the same, within what two measurements differ by.
MAX_WINDOWS = 1.02
# The most that the memory of all cases may be, as a multiple of that of two.
MAX_MEMORY = 1.05


def windows(turns: int) -> dict[str, float]:
    """Return the CPU seconds of a volume by both, and the largest difference of their probabilities."""
    import torch
    from monai.inferers import sliding_window_inference

    from medfed.pipeline.factory import module_of
    from medfed.study.reading import read_study

    study = read_study(STUDY)
    module, task = module_of(study).eval(), study.task
    volume = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[float]] = {"medfed": [], "monai": []}
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        outputs = module.predict_step({"image": volume, "case": ["one"]}, 0)
        return outputs["probabilities"], outputs["label"]

    def theirs() -> tuple[torch.Tensor, torch.Tensor]:
        logits = sliding_window_inference(
            volume, module.patch, task.windows, module.network, task.overlap, mode=task.blend,
            cval=float(volume.amin()),
        )  # fmt: skip
        probabilities = torch.softmax(logits, 1)
        return probabilities, probabilities.argmax(1, keepdim=True)

    with torch.inference_mode():
        for _ in range(turns + 1):
            for name, run in (("medfed", ours), ("monai", theirs)):
                began = time.process_time()
                kept[name] = run()
                found[name].append(time.process_time() - began)
    least = {name: min(one[1:]) for name, one in found.items()}
    difference = max(float((a - b).abs().max()) for a, b in zip(kept["medfed"], kept["monai"], strict=True))
    return {**least, "difference": difference}


def hospital(folder: Path, cases: int) -> None:
    """Write a folder of so many images without labels."""
    (folder / "images").mkdir(parents=True)
    sources = sorted(IMAGES.glob("*.nii.gz"))
    lines = ["case,patient,image"]
    for number in range(cases):
        shutil.copy(sources[number % len(sources)], folder / "images" / f"{number:03d}.nii.gz")
        lines.append(f"{number:03d},P{number:03d},images/{number:03d}.nii.gz")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")


def untrained_run(folder: Path) -> None:
    """Write a run folder of the quickstart with its first model."""
    from medfed.evaluation.rows import FEDERATED
    from medfed.pipeline.create_run import create_run
    from medfed.pipeline.factory import module_of
    from medfed.runs.checkpoints import save_checkpoint
    from medfed.runs.folder import RunFolder
    from medfed.study.reading import read_study
    from medfed.wire.weights import weights_of

    study = read_study(STUDY)
    folder.mkdir()
    run = RunFolder(folder)
    create_run(run, study, {})
    save_checkpoint(run.checkpoint(FEDERATED), weights_of(module_of(study)), 0)


def by_medfed(run: Path, data: Path, out: Path) -> None:
    """Predict all cases as `medfed predict` does."""
    from medfed.pipeline.predict import predict

    predict(run, data, out)


def by_monai(run: Path, data: Path, out: Path) -> None:
    """Predict all cases by MONAI's own transforms, with the run's network."""
    import torch
    from monai.data import DataLoader, Dataset, decollate_batch
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRangePercentilesd,
        Spacingd,
    )

    from medfed.evaluation.rows import FEDERATED
    from medfed.pipeline.predict import load_model
    from medfed.runs.folder import RunFolder
    from medfed.study.reading import read_study

    study = read_study(STUDY)
    module, task = load_model(study, RunFolder(run), FEDERATED), study.task
    before = Compose([
        LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS"),
        Spacingd("image", study.data.spacing_mm),
        ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True),
    ])  # fmt: skip
    after = Compose([
        Invertd("logits", before, "image", nearest_interp=False), AsDiscreted("logits", argmax=True),
        SaveImaged("logits", output_dir=out, separate_folder=False, print_log=False),
    ])  # fmt: skip
    files = [{"image": str(path)} for path in sorted((data / "images").glob("*.nii.gz"))]
    with torch.inference_mode():
        for batch in DataLoader(Dataset(files, before), 1):
            batch["logits"] = sliding_window_inference(
                batch["image"], module.patch, task.windows, module.network, task.overlap, mode=task.blend
            )
            for one in decollate_batch(batch):
                after(one)


def cases(way: str, run: str, data: str) -> dict[str, float]:
    """Return the seconds, CPU seconds and peak memory of predicting a folder, without the imports."""
    import monai.transforms
    import pytorch_lightning
    import torch

    del monai, pytorch_lightning, torch
    with tempfile.TemporaryDirectory() as out:
        began, cpu = time.perf_counter(), time.process_time()
        {"medfed": by_medfed, "monai": by_monai}[way](Path(run), Path(data), Path(out) / "out")
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        written = len(list((Path(out) / "out").glob("*.nii.gz")))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb, "written": written}


def compare(short: bool, number: int = 200) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`."""
    found = in_a_process(__file__, "--one", "windows", str(1 if short else TURNS))
    note = f"largest difference of probabilities and labels {found['difference']:.1g}"
    if found["difference"] > 1e-6:
        raise SystemExit(f"medfed and MONAI predict differently: {note}")
    yield Comparison(
        "windows of a volume", found["medfed"], "CPU s", "MONAI", found["monai"], MAX_WINDOWS, note
    )
    number = min(number, 20) if short else number
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hospital(folder / "two", 2)
        hospital(folder / "all", number)
        untrained_run(folder / "run")
        run, two, every = (str(folder / part) for part in ("run", "two", "all"))
        few = in_a_process(__file__, "--one", "medfed", run, two)
        ours = in_a_process(__file__, "--one", "medfed", run, every)
        theirs = in_a_process(__file__, "--one", "monai", run, every)
    for one in (ours, theirs):
        if one["written"] != number:
            raise SystemExit(f"{one['written']} of {number} masks were written")
    wall = f"by the wall clock {ours['wall_s'] / theirs['wall_s']:.2f}"
    per_case = (ours["cpu_s"] / number, theirs["cpu_s"] / number)
    yield Comparison("predict, per case", per_case[0], "CPU s", "MONAI's pipeline", per_case[1], 1.0, wall)
    what = f"memory of predicting {number} cases"
    yield Comparison(what, ours["peak_mb"], "MB", "two cases", few["peak_mb"], MAX_MEMORY)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--short", action="store_true", help="20 cases")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        warnings.filterwarnings("ignore")
        what, *words = given.one
        found: Any = windows(int(words[0])) if what == "windows" else cases(what, *words)
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        print_rows(compare(given.short, given.cases))


if __name__ == "__main__":
    main()
