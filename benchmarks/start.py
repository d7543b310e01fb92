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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from comparison import Comparison, print_rows

ROOT = Path(__file__).resolve().parents[1]
STUDY = str(ROOT / "configs" / "quickstart.yaml")
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
    env = {"PYTHONPATH": str(ROOT), **os.environ}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=env)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[-80:]} failed:\n{done.stderr[-3000:]}")
    return Took(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(study: str, repeats: int) -> dict[str, Took]:
    """Return the least of the libraries' import, the first step, the help, and Python's own start."""
    found: dict[str, list[Took]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            run = str(Path(folder) / f"run{repeat}")
            found.setdefault("import", []).append(took("-c", LIBRARIES))
            found.setdefault("step", []).append(took("-c", FIRST_STEP, study, "--out", run))
            found.setdefault("help", []).append(took("-m", "medfed.cli", "--help"))
            found.setdefault("python", []).append(took("-c", "pass"))
    return {
        name: Took(min(one.wall_s for one in rows), min(one.cpu_s for one in rows))
        for name, rows in found.items()
    }


def compare(short: bool, study: str = STUDY, repeats: int = 5) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`."""
    found = measure(study, 1 if short else repeats)
    step, least, usage = (found[name] for name in ("step", "import", "help"))
    beside = "import torch, Lightning and MONAI"
    note = f"by the wall clock {step.wall_s / least.wall_s:.2f}: {step.wall_s:.1f} of {least.wall_s:.1f} s"
    yield Comparison("medfed train, first step", step.cpu_s, "CPU s", beside, least.cpu_s, MAX_RATIO, note)
    note = f"{usage.wall_s:.2f} s by the wall clock; Python alone {found['python'].cpu_s:.2f} CPU s"
    yield Comparison("medfed --help", usage.cpu_s, "CPU s", bar=MAX_HELP_S, note=note)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default=STUDY)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="one repeat")
    given = parser.parse_args()
    print_rows(compare(given.short, given.study, given.repeats))


if __name__ == "__main__":
    main()
