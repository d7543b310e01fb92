"""Measure how long `medfed train` takes to its first step, and the command line to its help.

    python benchmarks/start.py [STUDY] [--repeats 5]
    python benchmarks/start.py --short  # one repeat: half a minute

The first step is an optimiser's, of the first site of the study: everything before it has happened by then
(imports, reading the study and the cases, the run folder, the first model). It stands beside the time that
Python takes to import torch, Lightning and MONAI, which no study on them can do without. Each is measured in
a process of its own, in turn, and the least of the repeats counts; CPU seconds are those of the process with
its children.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = "import torch, pytorch_lightning, monai"

# The most that the first step may take, as a multiple of the libraries' import, and help in seconds.
MAX_RATIO = 1.5
MAX_HELP_S = 0.06

# Trains a study until an optimiser has made a step. The command line is imported first, since it sets what
# torch reads at its import.
FIRST_STEP = """
import os, sys
from medfed.cli import main
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
sys.argv = ["medfed", "train", *sys.argv[1:]]
main()
"""


class Took(NamedTuple):
    """Wall and CPU seconds of a process."""

    wall_s: float
    cpu_s: float


def took(*words: str) -> Took:
    """Run Python with these words and return what it took.

    Raises:
        SystemExit: if the process fails.
    """
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[-80:]} failed:\n{done.stderr[-3000:]}")
    return Took(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(study: str, repeats: int) -> dict[str, Took]:
    """Return the least wall and CPU seconds of the libraries' import, the first step and the help."""
    found: dict[str, list[Took]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            run = str(Path(folder) / f"run{repeat}")
            found.setdefault("import torch, Lightning and MONAI", []).append(took("-c", LIBRARIES))
            step = took("-c", FIRST_STEP, study, "--out", run)
            found.setdefault("medfed train, first step", []).append(step)
            found.setdefault("medfed --help", []).append(took("-m", "medfed.cli", "--help"))
    return {
        name: Took(min(one.wall_s for one in rows), min(one.cpu_s for one in rows))
        for name, rows in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one repeat")
    given = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    found = measure(given.study, 1 if given.short else given.repeats)
    least = found["import torch, Lightning and MONAI"]
    print("| what | s | CPU s | times the import | times the import (CPU) |")
    print("|---|---|---|---|---|")
    for name, one in found.items():
        ratios = (one.wall_s / least.wall_s, one.cpu_s / least.cpu_s)
        print(f"| {name} | {one.wall_s:.2f} | {one.cpu_s:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
