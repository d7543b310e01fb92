"""Compare all rules and local methods on heterogeneous hospitals, with equal budgets and seeds.

    python benchmarks/heterogeneity.py quickstart [--seeds 0 1 2] [--methods fedavg,fedprox]
    MEDFED_REAL_DATA=... python benchmarks/heterogeneity.py hippocampus --seeds 0 --set train.rounds=10
    # short: a minute
    python benchmarks/heterogeneity.py quickstart --seeds 0 --methods fedavg --set train.rounds=1

The methods are those listed by `medfed kinds aggregation` and `medfed kinds local_training`, so a new method
appears in the next table. Each trains as in `medfed train --compare`, in its own run folder. Finished methods
are not trained again: an interrupted call continues, and a later call with more methods or seeds extends the
table.

Each value is the mean ± standard deviation over the seeds; the interval is the mean of the seeds' 95 %
intervals over patients. `worst hospital` is the lowest mean of any site.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from medfed import registry as kinds
from medfed.evaluation.report.method_table import MethodTable
from medfed.evaluation.rows import ALL_SITES
from medfed.pipeline.compare import compare
from medfed.runs.progress import Progress

ROOT = Path(__file__).parents[1]


class StartTimes(Progress):
    """Print a line when each method starts."""

    def start(self, title, sites, rounds, metric) -> None:  # type: ignore[no-untyped-def]
        print(f"{time.strftime('%H:%M:%S')} {title}", file=sys.stderr, flush=True)


def every_method() -> list[str]:
    """Return the names of all rules and local methods, beginning with the baseline FedAvg."""
    names = sorted({*kinds.kinds("aggregation"), *kinds.kinds("local_training")} - {"fedavg"})
    return ["fedavg", *names]


def overrides_of(study: str) -> list[str]:
    """Return the overrides of a study: the folders of the hippocampus hospitals, made here
    from the real data.
    """
    if study != "hippocampus":
        return []
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import hippocampus

    folder = ROOT / "runs" / "hippocampus-sites"
    hippocampus.make(Path(os.environ["MEDFED_REAL_DATA"]) / "hippocampus", folder)
    return [f"sites.{site}={(folder / site).resolve()}" for site in hippocampus.SITES]


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def lines(tables: Sequence[MethodTable]) -> list[str]:
    """Return the table as Markdown."""
    first = tables[0]
    sites = [place for place in first.places if place != ALL_SITES]
    held_out = first.places[: first.places.index(ALL_SITES)]
    inside = [site for site in sites if site not in held_out]
    head = ["method", *held_out, "all sites", "95 % interval", "worst hospital", "sent, kB"]
    table_lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, cost in first.methods.items():
        if cost.refused:
            table_lines.append(f"| {method} | not run: {cost.refused} |" + " |" * (len(head) - 2))
            continue
        cells = [method]
        for place in (*held_out, ALL_SITES):
            values = [row.value for t in tables if (row := t.score(method, place)) and row.value is not None]
            cells.append(spread(values) if values else "–")
        rows = [
            row for t in tables if (row := t.score(method, ALL_SITES)) and row.low is not None and row.high
        ]
        around = f"{mean(r.low for r in rows):.3f} to {mean(r.high for r in rows):.3f}" if rows else "–"
        worst = [
            mean(row.value for t in tables if (row := t.score(method, site)) and row.value is not None)
            for site in inside
            if any((row := t.score(method, site)) and row.value is not None for t in tables)
        ]
        sent = f"{cost.bytes_up / 1e3:.0f}" if cost.bytes_up is not None else ""
        table_lines.append(
            "| " + " | ".join([*cells, around, f"{min(worst):.3f}" if worst else "–", sent]) + " |"
        )
    return table_lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["quickstart", "hippocampus"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", default="")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    if options.study == "hippocampus" and "MEDFED_REAL_DATA" not in os.environ:
        print("set MEDFED_REAL_DATA to the folder that holds hippocampus/", file=sys.stderr)
        return 2
    methods = options.methods.split(",") if options.methods else every_method()
    out = options.out or ROOT / "runs" / f"heterogeneity-{options.study}"
    overrides = [*overrides_of(options.study), *options.overrides]
    tables = []
    for seed in options.seeds:
        table, _ = compare(
            ROOT / "configs" / f"{options.study}.yaml",
            methods,
            out=out / f"seed{seed}",
            overrides=[*overrides, f"seed={seed}"],
            resume=True,
            progress=StartTimes(),
        )
        tables.append(table)
    print(
        f"{options.study}: {tables[0].metric}, seeds {', '.join(map(str, options.seeds))}, "
        f"{'; '.join(options.overrides) or 'the study as it is'}\n"
    )
    print("\n".join(lines(tables)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
