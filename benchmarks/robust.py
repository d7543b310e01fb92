"""Measure the Dice of each rule on the quickstart's four hospitals with an attacking fifth site.

    python benchmarks/robust.py > benchmarks/RESULTS-robust.md
    python benchmarks/robust.py --rules fedavg --attacks sign_flip --set train.rounds=1  # short: a minute

One attacker among five sites is the most that Krum's bound allows (2 f + 3 sites), and its clean run needs
five honest sites; Bulyan needs 4 f + 3. With --parts 2, each hospital is two sites, enough for both.
Compare a rule with its own clean run. The attacker knows the honest updates; see tests/attacks.py. Grid and
network are smaller than the quickstart's, so the table takes minutes on two cores; `--set` changes them.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from attacks import ATTACKS, SMALL, Attacked, dice_after, hospitals

from medfed.aggregation import Rule
from medfed.aggregation.bulyan import Bulyan
from medfed.aggregation.centred_clipping import CentredClipping
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.geometric_median import GeometricMedian
from medfed.aggregation.krum import Krum
from medfed.aggregation.median import Median
from medfed.aggregation.multi_krum import MultiKrum
from medfed.aggregation.norm_bound import NormBound
from medfed.aggregation.trimmed_mean import TrimmedMean

RULES: dict[str, Rule] = {
    "fedavg": FedAvg(),
    "median": Median(),
    "trimmed_mean": TrimmedMean(trim=1),
    "krum": Krum(attackers=1),
    "multi_krum": MultiKrum(attackers=1),
    "bulyan": Bulyan(attackers=1),
    "krum_mixing": Krum(attackers=1, mixing=True),
    "multi_krum_mixing": MultiKrum(attackers=1, mixing=True),
    "bulyan_mixing": Bulyan(attackers=1, mixing=True),
    "geometric_median": GeometricMedian(),
    "centred_clipping": CentredClipping(),
    "norm_bound": NormBound(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rules", default=",".join(name for name in RULES if not name.startswith("bulyan")))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--parts", type=int, default=1, help="sites that each hospital is split into")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    attacks = chosen.attacks.split(",")
    settings = (*SMALL, *chosen.set)
    found = hospitals(settings, chosen.parts)
    print(
        "# Robust rules under attack\n\n"
        f"Made by `python {' '.join(['benchmarks/robust.py', *sys.argv[1:]])}` on "
        f"{date.today()}.\nSettings beside configs/quickstart.yaml: `{' '.join(settings)}`."
    )
    cases = next(iter(found.sites.values())).examples
    print(
        f"{len(found.sites)} honest sites of {cases} training cases, and one attacker; `clean` is without "
        f"it. Dice over {len(found.held_back)} held-back cases.\n"
    )
    print(f"| rule | clean | {' | '.join(attacks)} |")
    print("|---|---|" + "---|" * len(attacks), flush=True)
    for name in chosen.rules.split(","):
        rule = RULES[name]
        enough_sites = len(found.sites) >= rule.min_sites
        row = [dice_after(found, rule) if enough_sites else float("nan")]
        row += [dice_after(found, Attacked(rule=rule, attack=attack)) for attack in attacks]
        print(f"| {name} | {' | '.join(f'{one:.3f}' for one in row)} |".replace("nan", "-"), flush=True)
    print(
        f"\n0.000 also stands for weights that overflowed. {time.process_time() - began:.0f} s of one core."
    )


if __name__ == "__main__":
    main()
