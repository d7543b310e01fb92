"""How often a study survives random kills with every bit: `python benchmarks/chaos.py --runs 200`.

Each run is a federation of real processes at a real broker. Hub, broker and sites are killed (kill -9) or stopped
(SIGSTOP) at random moments and started again. A run counts if its final weights are those of an undisturbed run.
Prints one line of JSON a run that did not, and one with the counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "exchange"))


def main() -> None:
    """Run, compare and print."""
    from brokered import Enrolment
    from chaos import disturbed
    from federation import Federation

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--exchange", choices=["nats", "folder"], default="nats")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        enrolment = Enrolment(Path(name))
        enrolment.start()
        calm = Federation(Path(name), enrolment.exchange_of)
        calm.start("hub", "north", "south")
        expected = calm.digest()
        calm.end()
        enrolment.end()
    same, began = 0, time.monotonic()
    for seed in range(arguments.first, arguments.first + arguments.runs):
        with tempfile.TemporaryDirectory() as name:
            try:
                found = disturbed(seed, Path(name), arguments.exchange)
                wrong = None if found["digest"] == expected else found
            except AssertionError as error:
                wrong = {"seed": seed, "error": str(error)[-3000:]}
        same += wrong is None
        if wrong:
            sys.stdout.write(json.dumps(wrong) + "\n")
            sys.stdout.flush()
    seconds = round(time.monotonic() - began)
    sys.stdout.write(json.dumps({"runs": arguments.runs, "same_bits": same, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
