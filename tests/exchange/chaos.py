"""Run a study under random kills, for the slow tests and benchmarks/chaos.py."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from broker_enrolment import Enrolment
from federation import Federation, over

# The number of disturbances in a run, and their times within the duration of an undisturbed run.
MOST, WITHIN_S = 4, 4.0


def disturbed(seed: int, folder: Path, kind: str = "nats", port: int = 0) -> dict[str, Any]:
    """Run the study of `party.py` while killing random parties; return its digest and a log.

    The broker's ports are `port` and `port + 1`; by default, free ports are chosen.
    """
    chance = random.Random(seed)
    ports = {"port": port, "websocket_port": port + 1} if port else {}
    enrolment = Enrolment(folder, **ports) if kind == "nats" else None
    broker = enrolment.start() if enrolment else None
    study = Federation(
        folder, enrolment.exchange_of if enrolment else over(str(folder / "share")), settings={"pause_s": 0.1}
    )
    parties = ["hub", "north", "south", *(["broker"] if broker else [])]
    done = []
    try:
        study.start("hub", "north", "south")
        for at in sorted(chance.uniform(0, WITHIN_S) for _ in range(chance.randint(1, MOST))):
            began = time.monotonic()
            time.sleep(at / MOST)
            who, how = chance.choice(parties), chance.choice(["kill", "kill", "stop"])
            done.append([round(time.monotonic() - began, 2), who, how])
            if who == "broker":
                assert broker is not None
                os.kill(broker.pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
                if how == "stop":
                    time.sleep(chance.uniform(0.1, 2))
                    os.kill(broker.pid, signal.SIGCONT)
            elif study.running[who].exitcode is not None:
                continue
            elif how == "kill":
                study.kill(who)
                time.sleep(chance.uniform(0, 1))
                study.start(who)
            else:
                study.stop(who)
                time.sleep(chance.uniform(0.1, 2))
                study.go_on(who)
        return {"seed": seed, "digest": study.digest(), "done": done}
    finally:
        study.end()
        if enrolment:
            enrolment.end()
