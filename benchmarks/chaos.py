"""Count how often a randomly disturbed study ends with the same final weights, bit for bit.

    python benchmarks/chaos.py --runs 200 --results chaos.jsonl
    python benchmarks/chaos.py --runs 1 --exchange folder  # short: a minute
    python benchmarks/chaos.py --runs 50 --exchange cluster --losses

Each run is a federation of real processes at a real broker, at a cluster of three, over a folder or over a
share that is synchronised late, in any order and in halves. Hub, brokers and sites are killed (kill -9) or
stopped (SIGSTOP) at random moments and started again. With `--losses` the store is deleted (of a cluster, one
broker's), a party's run folder is replaced by an earlier back-up of it, or a bit in it is flipped, too. A run
passes if its final weights equal those of an undisturbed run, or if a party ended with an error of medfed's,
which says what to do. The script prints one line when a run ends (seed, seconds, the disturbances, and
whether the weights are the same) and the totals at the end.

With `--results`, each run is appended to the file as a line of JSON, and a later call continues with the
missing seeds, so the script can be stopped (Ctrl-C, kill) at any time. To share the work between processes,
give each its own `--first` and its own file; a broker's port is `--port` plus twice the seed, so ports never
clash.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "exchange")]


def undisturbed(port: int) -> str:
    """Return the digest of the final weights of an undisturbed run."""
    from broker_enrolment import Enrolment
    from federation import Federation

    with tempfile.TemporaryDirectory() as name:
        enrolment = Enrolment(Path(name), port=port, websocket_port=port + 1)
        enrolment.start()
        calm = Federation(Path(name), enrolment.exchange_of)
        try:
            calm.start("hub", "north", "south")
            return calm.digest()
        finally:
            calm.end()
            enrolment.end()


def one(seed: int, exchange: str, port: int, expected: str, losses: bool) -> dict[str, Any]:
    """Return the outcome of one disturbed run."""
    from chaos import disturbed

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        try:
            found = disturbed(seed, Path(name), exchange, port, losses)
        except AssertionError as error:
            found = {"seed": seed, "error": str(error)[-3000:]}
    same = found.get("digest") == expected
    seconds = round(time.monotonic() - began, 1)
    return {**found, "exchange": exchange, "losses": losses, "same": same, "seconds": seconds}


def line(found: dict[str, Any]) -> str:
    """Format a run as a line of the table."""
    done = ", ".join(f"{how} {who} at {at:.2f}" for at, who, how in found.get("done", []))
    said = "same bits" if found["same"] else found.get("told") or f"NOT THE SAME {found.get('error', '')}"
    return f"{found['seed']:5d}  {found['seconds']:6.1f} s  {said}  {done}\n"


def main() -> None:
    """Run all seeds, compare the digests and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first run's seed")
    parser.add_argument("--exchange", choices=["nats", "folder", "cluster", "share"], default="nats")
    parser.add_argument(
        "--losses", action="store_true", help="delete stores, restore back-ups, flip bits, too"
    )
    parser.add_argument(
        "--results", type=Path, help="append one line of JSON per run; seeds in the file are not run again"
    )
    parser.add_argument("--port", type=int, default=20000, help="a broker's port is this plus twice the seed")
    arguments = parser.parse_args()
    # Stopping the script also stops the parties and the broker of the current run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[int, dict[str, Any]] = {}
    if arguments.results and arguments.results.exists():
        for text in arguments.results.read_text().splitlines():
            row = json.loads(text)
            if (row["exchange"], row.get("losses", False)) == (arguments.exchange, arguments.losses):
                found[row["seed"]] = row
    seeds = range(arguments.first, arguments.first + arguments.runs)
    left = [seed for seed in seeds if seed not in found]
    expected = undisturbed(arguments.port + 2 * left[0]) if left else ""
    for seed in left:
        found[seed] = one(seed, arguments.exchange, arguments.port + 2 * seed, expected, arguments.losses)
        sys.stdout.write(line(found[seed]))
        sys.stdout.flush()
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(json.dumps(found[seed]) + "\n")
    rows = [found[seed] for seed in seeds]
    same, seconds = sum(row["same"] for row in rows), round(sum(row["seconds"] for row in rows))
    told = sum(not row["same"] and bool(row.get("told")) for row in rows)
    totals = {"runs": len(rows), "same_bits": same, "told": told, "seconds": seconds}
    sys.stdout.write(json.dumps(totals) + "\n")


if __name__ == "__main__":
    main()
