"""The quickstart's hospitals with two of eight sites attacking: the Dice of each rule under each attack.

    python benchmarks/robust.py > benchmarks/RESULTS-robust.md

The four hospitals are split in two each, so that the rules' bounds hold (Krum needs 2 f + 3 sites, Bulyan 4 f + 3: it
has one attacker). Attackers collude and know the honest updates; see tests/attacks.py. Grid and network are smaller
than the quickstart's, so that the table is made in minutes on two cores; `--set` gives others.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from attacks import ATTACKS, SMALL, Attacked, dice_after, hospitals

from medfed.rules import Rule
from medfed.rules.bulyan import Bulyan
from medfed.rules.centred_clipping import CentredClipping
from medfed.rules.fedavg import FedAvg
from medfed.rules.geometric_median import GeometricMedian
from medfed.rules.krum import Krum
from medfed.rules.median import Median
from medfed.rules.multi_krum import MultiKrum
from medfed.rules.norm_bound import NormBound
from medfed.rules.trimmed_mean import TrimmedMean

RULES: dict[str, tuple[Rule, int]] = {
    "fedavg": (FedAvg(), 2),
    "median": (Median(), 2),
    "trimmed_mean": (TrimmedMean(trim=2), 2),
    "krum": (Krum(attackers=2), 2),
    "multi_krum": (MultiKrum(attackers=2), 2),
    "bulyan": (Bulyan(attackers=1), 1),
    "geometric_median": (GeometricMedian(), 2),
    "centred_clipping": (CentredClipping(), 2),
    "norm_bound": (NormBound(), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rules", default=",".join(RULES))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    found = hospitals(chosen.set or SMALL)
    print(
        f"# Robust rules under attack\n\nMade by `python {' '.join(['benchmarks/robust.py', *sys.argv[1:]])}`."
    )
    cases = next(iter(found.sites.values())).examples
    print(
        f"Settings beside configs/quickstart.yaml: `{' '.join(chosen.set or SMALL)}`. Eight sites of {cases} training "
        f"cases; Dice over {len(found.held_back)} held-back cases.\n"
    )
    print(f"| rule | attackers | clean | {' | '.join(ATTACKS)} |")
    print("|---|---|---|" + "---|" * len(ATTACKS), flush=True)
    for name in chosen.rules.split(","):
        rule, attackers = RULES[name]
        row = [f"{dice_after(found, rule):.3f}"]
        row += [
            f"{dice_after(found, Attacked(rule=rule, attack=attack, attackers=attackers)):.3f}"
            for attack in ATTACKS
        ]
        print(f"| {name} | {attackers} of 8 | {' | '.join(row)} |", flush=True)
    print(
        f"\n0.000 also stands for weights that left the range of numbers. {time.process_time() - began:.0f} s of one core."
    )


if __name__ == "__main__":
    main()
