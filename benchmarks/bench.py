"""Measure speed and scale against what stands beside medfed, in one table: what `make bench` runs.

    python benchmarks/bench.py [--only start,epoch,inference,exchange,soak,simulation,peers]
    python benchmarks/bench.py --short  # each part with its least work: some ten minutes on a calm machine

Each part is a script of this folder with a command of its own. The table takes the place of the former one in
RESULTS.md, with the date and the machine; older ones are in git's history. `--only` measures some parts and
leaves the rows of the others as they are, each part under its own date. A part that fails says so in its
place, and the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import comparison
import epoch
import exchange
import inference
import peers
import simulation
import soak
import start
from comparison import Comparison

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "## Speed and scale"
INTRODUCTION = (
    "Made by `make bench` (benchmarks/bench.py), which replaces it; each part names its script, date and "
    "machine. The ratio is medfed's figure as a multiple of the other, the bar the most that it may be; "
    "without anything beside it the bar is of medfed's own figure."
)

PARTS: dict[str, Callable[[bool], Iterator[Comparison]]] = {
    "start": start.compare,
    "epoch": epoch.compare,
    "inference": inference.compare,
    "exchange": exchange.compare,
    "soak": soak.compare,
    "simulation": simulation.compare,
    "peers": peers.compare,
}


def machine() -> str:
    """Return the processor, its cores and how busy they are."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}"


def measure(part: str, short: bool) -> str:
    """Return a part's section of the results, printing its rows as they come."""
    print(f"\n### {part}\n", flush=True)
    date, about = datetime.datetime.now().date(), machine()
    failure, rows = "", []
    print(comparison.HEADER, flush=True)
    try:
        for row in PARTS[part](short):
            rows.append(row.line())
            print(rows[-1], flush=True)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        failure = f"\n\nThe rest was not measured: {last[0]}"
        print(failure, flush=True)
    how = f"`python benchmarks/{part}.py{' --short' if short else ''}`, {date}, {about}."
    return f"### {part}\n\n{how}\n\n" + "\n".join([comparison.HEADER, *rows]) + failure


def sections(text: str) -> tuple[str, dict[str, str], str]:
    """Return what stands before the table in the results, the former sections by part, and what follows."""
    before, found, rest = text.partition(f"{TITLE}\n")
    if not found:
        head, _, tail = text.partition("\n## ")
        return f"{head.rstrip()}\n\n", {}, f"## {tail}" if tail else ""
    own, following, after = rest.partition("\n## ")
    parts = {one.partition("\n")[0].strip(): f"### {one.strip()}" for one in own.split("\n### ")[1:]}
    return before, parts, f"## {after}" if following else ""


def write(results: Path, measured: dict[str, str]) -> None:
    """Replace the measured parts in the results."""
    before, parts, after = sections(results.read_text() if results.exists() else "# Results\n")
    parts |= measured
    body = "\n\n".join([parts[name] for name in PARTS if name in parts])
    results.write_text(f"{before}{TITLE}\n\n{INTRODUCTION}\n\n{body}\n\n{after}".rstrip() + "\n")


def main() -> None:
    """Measure all parts, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="each part with its least work")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"--only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part in chosen:
        # After every part, so that an interruption does not lose what was measured.
        write(given.results, {part: measure(part, given.short)})
    sys.exit(0)


if __name__ == "__main__":
    main()
