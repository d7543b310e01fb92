"""Measure each rule's merge: time relative to one pass over the same bytes, and peak memory in models.

    python benchmarks/merge.py [--sites 32] [--parameters 25000000] [--rules fedavg,median]
    python benchmarks/merge.py --sites 8 --parameters 1000000  # short: minutes

Each rule runs in its own process. Time is CPU time, measured with the updates in memory (a few different
models in turn, far more than any cache holds). Memory is measured with the updates in safetensors files that
are read tensor by tensor, as on a hub: the largest resident set during the merge minus the one before it,
plus the one model of global weights that existed before. A rule's own state, before and after, is listed
separately. A pass is a running float32 mean over the same bytes, including a group of tensors if a rule
merges one (scaffold's control variates): torch's `total.add_(delta, alpha=share)`, the least that any merge
can do, and numpy's `total += share * delta`. Passes and merges are timed in turn and the fastest of each
counts, so that other work on the machine affects both.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medfed import registry as kinds
from medfed.aggregation import Rule
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights

# Cycle through distinct models (400 MB at 25M parameters), so that none stays in a cache between sites.
MODELS = 4

# How often each run is repeated.
TURNS = 4

# Relative tensor sizes as in a 3D U-Net or ResNet-50: many tensors, the largest a tenth of the model.
PARTS = (0.1, 0.1, 0.08, 0.08, 0.08, *[0.04] * 10, *[0.01] * 15)


class File(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read on access and not cached."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        with safe_open(path, framework="pt") as opened:
            self.names = sorted(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        # A copy, not a view of the mapped file, so that the tensor counts as memory.
        with safe_open(self.path, framework="pt") as opened:
            return opened.get_tensor(name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def rule_of_kind(kind: str) -> Rule:
    rule = kinds.kinds("aggregation")[kind]()
    assert isinstance(rule, Rule)
    return rule


def model(seed: int, parameters: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        f"layer{i:02}": torch.randn(max(1, int(parameters * p)), generator=g) for i, p in enumerate(PARTS)
    }


def make_updates(rule: Rule, models: Sequence[Weights], weights: Weights, sites: int) -> list[Update]:
    groups = {name: dict(models[0]) for name in rule.needs_groups}
    count = min(sites, rule.max_sites or sites)
    return [
        Update(
            f"site{i:03}",
            1,
            Difference(models[i % len(models)], weights),
            10 + i,
            # A cluster is the number of one of ifca's two models; any other scalar is a loss or a
            # number of steps.
            {name: float(i % 2) if name == "train/cluster" else 3.0 for name in rule.needs_scalars},
            groups,
        )
        for i in range(count)
    ]


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of one run."""
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def torch_pass(total: Weights, sites: Sequence[Weights]) -> None:
    for site in sites:
        for name, tensor in site.items():
            total[name].add_(tensor, alpha=1 / len(sites))


def numpy_pass(total: Weights, sites: Sequence[Weights]) -> None:
    share = np.float32(1 / len(sites))
    for site in sites:
        for name, tensor in site.items():
            array = total[name].numpy()
            array += share * tensor.numpy()


def measure_time(kind: str, sites: int, parameters: int) -> dict[str, float]:
    rule = rule_of_kind(kind)
    weights = model(0, parameters)
    models: list[Weights] = [model(i + 1, parameters) for i in range(MODELS)]
    updates = make_updates(rule, models, weights, sites)
    state = rule.init(weights)
    total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    read = [u.delta.minuend for u in updates]
    read += [group for u in updates for group in u.groups.values()]
    runs: dict[str, Callable[[], object]] = {
        "torch": lambda: torch_pass(total, read),
        "numpy": lambda: numpy_pass(total, read),
        "seconds": lambda: rule.merge(updates, state, weights),
    }
    fastest = dict.fromkeys(runs, float("inf"))
    for _ in range(TURNS):
        for name, run in runs.items():
            fastest[name] = min(fastest[name], cpu_seconds(run))
    merge = fastest["seconds"]
    return {"seconds": merge, "torch": merge / fastest["torch"], "numpy": merge / fastest["numpy"]}


def measure_memory(kind: str, sites: int, parameters: int, folder: Path) -> dict[str, float]:
    rule = rule_of_kind(kind)
    size = parameters * 4
    weights = model(0, parameters)
    updates = make_updates(rule, [File(folder / f"{i}.safetensors") for i in range(MODELS)], weights, sites)
    # A first small merge, so that the libraries' own memory is allocated before the count starts.
    small = {"w": torch.zeros(100)}
    tiny = make_updates(rule, [{"w": torch.randn(100)}], small, max(7, rule.min_sites))
    rule.merge(tiny, rule.init(small), small)
    state = rule.init(weights)
    gc.collect()
    before = resident_bytes()
    merged, after = rule.merge(updates, state, weights)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    new_state = sum(t.numel() * t.element_size() for group in after.values() for t in group.values())
    del merged
    return {"models": 1 + (peak - before - new_state) / size, "state": 2 * new_state / size}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_in_subprocess(what: str, kind: str, options: argparse.Namespace, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, "--rules", kind, "--folder", folder]
    command += ["--sites", str(options.sites), "--parameters", str(options.parameters)]
    command += ["--threads", str(options.threads)]
    # Return freed tensors at once: otherwise the peak shows what the allocator kept, not what the merge used.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"} if what == "memory" else os.environ
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{kind}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="What each merge rule costs in time and memory.")
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--rules", default=",".join(kinds.kinds("aggregation")))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=["time", "memory"])
    parser.add_argument("--folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure == "time":
        print(json.dumps(measure_time(options.rules, options.sites, options.parameters)))
        return
    if options.measure == "memory":
        print(
            json.dumps(measure_memory(options.rules, options.sites, options.parameters, Path(options.folder)))
        )
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        for i in range(MODELS):
            save_file(model(i + 1, options.parameters), Path(folder) / f"{i}.safetensors")
        print(f"{options.sites} updates of {options.parameters:,} float32, {options.threads} threads")
        print(
            f"{'rule':18}{'CPU s':>9}{'x torch pass':>14}{'x numpy pass':>14}"
            f"{'models':>9}{'state, models':>15}"
        )
        for kind in options.rules.split(","):
            least = rule_of_kind(kind).min_sites
            if options.sites < least:
                print(f"{kind:18}  needs at least {least} sites", flush=True)
                continue
            spent = measure_in_subprocess("time", kind, options, folder) | measure_in_subprocess(
                "memory", kind, options, folder
            )
            print(
                f"{kind:18}{spent['seconds']:9.2f}{spent['torch']:14.2f}{spent['numpy']:14.2f}"
                f"{spent['models']:9.2f}{spent['state']:15.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
