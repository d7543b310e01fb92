"""Compare a simulated federation with a plain loop that copies a model, trains it and averages.

    python benchmarks/simulation.py --sites 10 100 1000 --asked 50 --millions 10
    python benchmarks/simulation.py --short  # 4 sites of a million parameters: a minute

Each site trains one tiny batch a round by SGD, so that what is measured is the federation and not the
training. A round asks all sites, or `--asked` of them. Both ways compute the same mean. Each case runs in a
process of its own, for its peak memory; processor seconds of all threads stand beside seconds, because
machines that are shared are noisy.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import torch
from comparison import Comparison, print_rows
from torch import nn

LAYERS = 10
BATCH = 2

# The most that a round may take as a multiple of the loop, and that the process may hold, in GB.
MAX_RATIO, MAX_GB = 1.2, 1.3


def network(millions: float) -> nn.Sequential:
    """Return linear layers of equal size with that many parameters in all."""
    torch.manual_seed(0)
    width = int((millions * 1e6 / LAYERS) ** 0.5)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))


def inputs(model: nn.Sequential) -> torch.Tensor:
    """Return the batch that every site trains on."""
    return torch.randn(BATCH, model[0].in_features, generator=torch.Generator().manual_seed(1))


def plain_loop(sites: int, millions: float, rounds: int) -> list[tuple[float, float]]:
    """Return seconds and processor seconds of each round of a loop without any framework."""
    model = network(millions)
    batch = inputs(model)
    local = copy.deepcopy(model)
    found = []
    for _ in range(rounds):
        began, cpu = time.perf_counter(), time.process_time()
        total = [torch.zeros_like(value) for value in model.parameters()]
        for _ in range(sites):
            with torch.no_grad():
                for own, value in zip(local.parameters(), model.parameters(), strict=True):
                    own.copy_(value)
            optimiser = torch.optim.SGD(local.parameters(), lr=0.01)
            local(batch).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
            with torch.no_grad():
                for sum_, own in zip(total, local.parameters(), strict=True):
                    sum_.add_(own, alpha=1 / sites)
        with torch.no_grad():
            for value, sum_ in zip(model.parameters(), total, strict=True):
                value.copy_(sum_)
        found.append((time.perf_counter() - began, time.process_time() - cpu))
    return found


def federation(sites: int, millions: float, rounds: int, asked: int) -> list[tuple[float, float]]:
    """Return seconds and processor seconds of each round of a simulation."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    import medfed
    from medfed.aggregation.fedavg import FedAvg
    from medfed.federation.config import HubConfig
    from medfed.federation.simulation import simulate

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(millions)

        def training_step(self, batch, index):
            return self.network(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def site(name):
        def function(exchange) -> None:
            module = Module()
            trainer = pl.Trainer(
                max_epochs=rounds, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
                callbacks=[medfed.FederatedCallback(name, exchange, examples=BATCH)],
            )  # fmt: skip
            trainer.fit(module, DataLoader(TensorDataset(inputs(module.network)), batch_size=BATCH))

        return function

    found: list[tuple[float, float]] = []
    last = [time.perf_counter(), time.process_time()]

    def on_round(report) -> None:
        now = [time.perf_counter(), time.process_time()]
        if report.round <= rounds and len(found) < rounds:  # after the last one, sites only report
            found.append((now[0] - last[0], now[1] - last[1]))
        last[:] = now

    names = [f"site{number:04d}" for number in range(sites)]
    start = medfed.weights_of(Module())
    config = HubConfig(rounds, tuple(names), FedAvg(), minimum=1, fraction=asked / sites)
    simulate({name: site(name) for name in names}, start, config, on_round=on_round)
    return found


def measured(way: str, sites: int, millions: float, rounds: int, asked: int) -> dict[str, float]:
    """Return the least seconds and processor seconds of a round, and the process's peak memory in GB."""
    arguments = ["--one", way, "--sites", str(sites), "--millions", str(millions), "--rounds", str(rounds)]
    arguments += ["--asked", str(asked)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(short: bool) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`: 10, 100 and 1,000 sites, of which at most 50 train."""
    for sites in (4,) if short else (10, 100, 1000):
        millions, asked = 1.0 if short else 10.0, min(50 if sites > 100 else sites, sites)
        loop = measured("loop", sites, millions, 3, asked)
        ours = measured("medfed", sites, millions, 3, asked)
        what = f"round of {asked} of {sites} sites, {millions:g}M parameters"
        note = f"by the wall clock {ours['seconds'] / loop['seconds']:.2f}"
        yield Comparison(what, ours["cpu"], "CPU s", "plain loop", loop["cpu"], MAX_RATIO, note)
        note = f"the loop {loop['peak']:.2f} GB"
        yield Comparison(f"peak memory of {sites} sites", ours["peak"], "GB", bar=MAX_GB, note=note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--millions", type=float, default=10.0, help="parameters of the model, in millions")
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--asked", type=int, default=100, help="at most so many sites train in a round")
    parser.add_argument("--one", choices=("loop", "medfed"), help="one case, as JSON")
    parser.add_argument("--short", action="store_true", help="4 sites, as a row of `make bench`")
    chosen = parser.parse_args()
    if chosen.short:
        print_rows(compare(short=True))
        return
    if chosen.one:
        sites, asked = chosen.sites[0], min(chosen.asked, chosen.sites[0])
        if chosen.one == "loop":
            rounds = plain_loop(asked, chosen.millions, chosen.rounds)[1:]
        else:
            rounds = federation(sites, chosen.millions, chosen.rounds, asked)[1:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        least = {"seconds": min(s for s, _ in rounds), "cpu": min(c for _, c in rounds), "peak": peak}
        print(json.dumps(least))
        return
    print(f"{chosen.millions:g} million parameters, torch with {torch.get_num_threads()} threads\n")
    print("| sites, asked | way | s per round | CPU s per round | times the loop (CPU) | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    for sites in chosen.sites:
        asked = min(chosen.asked, sites)
        loop = measured("loop", sites, chosen.millions, chosen.rounds, asked)
        ours = measured("medfed", sites, chosen.millions, chosen.rounds, asked)
        for name, one in (("plain loop", loop), ("medfed", ours)):
            ratio = one["cpu"] / loop["cpu"]
            print(
                f"| {sites}, {asked} | {name} | {one['seconds']:.2f} | {one['cpu']:.2f} | {ratio:.1f} | "
                f"{one['peak']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
