"""Reproduce Fed-TCGA-BRCA's pooled and single-centre rows with a plain torch loop, without medfed.

    MEDFED_REAL_DATA=... python benchmarks/flamby_plain.py  # minutes, with no shorter form

It uses FLamby's budget and seeds (Adam 0.1, 30 epochs, batch 8, a new linear layer per seed), a new
implementation of its loss from Cox's partial likelihood, and torch's shuffling after
`torch.manual_seed(seed)`, so that the batches are those of FLamby's own program. If this loop reproduces a
published row to three digits and medfed does not, the fault is medfed's; otherwise it is not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from flamby import BENCHMARKS, POOLED, PUBLISHED, SEEDS, Centre, brca, concordance
from real_data import real_data
from torch import Tensor

RATE, EPOCHS = 0.1, 30


def cox(risk: Tensor, answers: Tensor) -> Tensor:
    """Return the negative log partial likelihood of risks (N,) given times and events (N, 2), over N."""
    order = (-answers[:, 0]).argsort(stable=True)
    return ((risk[order].logcumsumexp(0) - risk[order]) * answers[order, 1]).mean()


def in_file_order(real: Path) -> Centre:
    """Return all centres' cases in the order of the file, as FLamby pools them: what a shuffle
    draws depends on it.
    """
    import pandas as pd

    table = pd.read_csv(real / "tcga_brca" / "brca.csv")
    split = pd.read_csv(real / "tcga_brca" / "train_test_split.csv").set_index("pid")["fold"]
    where = table["pid"].map(split)
    mine = where.isin(["train", "test"]).to_numpy()
    return Centre(
        table.iloc[mine, 1:40].to_numpy(np.float32),
        table.loc[mine, ["T", "E"]].to_numpy(np.float32),
        (where[mine] == "train").to_numpy(),
    )


def trained(centre: Centre, seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    model = torch.nn.Linear(centre.features.shape[1], 1)
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    held = [torch.from_numpy(values[centre.training]) for values in (centre.features, centre.answers)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*held), BENCHMARKS["brca"].batch, shuffle=True
    )
    for _ in range(EPOCHS):
        for features, answers in loader:
            optimiser.zero_grad()
            cox(model(features)[:, 0], answers).backward()
            optimiser.step()
    return model


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    real = real_data("tcga_brca")
    torch.set_num_threads(1)
    centres = brca(real)
    together = in_file_order(real)
    tested, answers = together.features[~together.training], together.answers[~together.training]
    print(f"| trained on | {POOLED}, plain loop | published |\n|---|---|---|")
    for title, centre in [
        ("pooled training", together),
        *((f"{n} alone", c) for n, c in centres.items()),
    ]:
        found = []
        for seed in SEEDS:
            model = trained(centre, seed)
            with torch.no_grad():
                risk = model(torch.from_numpy(tested))[:, 0].numpy().astype(np.float64)
            found.append(concordance(risk, answers))
        known = PUBLISHED["brca"][title]
        print(
            f"| {title} | {mean(found):.4f} ± {stdev(found):.4f} | {known[0]:.4f} ± {known[1]:.4f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
