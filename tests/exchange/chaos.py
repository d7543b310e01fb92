"""Run a study under random kills and losses, for the slow tests and benchmarks/chaos.py."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import party
from broker_enrolment import Enrolment
from federation import Federation, over
from synchroniser import Synchroniser

from medfed.deployment.enrolment.broker import Broker
from medfed.exchange._own_folder import DAMAGED_MODEL, OLDER_FOLDER

# The number of disturbances in a run, and their times within the duration of an undisturbed run.
MOST, WITHIN_S = 4, 4.0

KINDS = ("nats", "folder", "cluster", "share")
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
KILLS = ("kill", "kill", "stop")
LOSSES = ("store", "back-up", "bit")


@dataclass
class Ground:
    """Where a study runs: each party's exchange, its brokers, and what deletes what the exchange holds."""

    exchange_of: Callable[[str], dict[str, Any]]
    enrolment: Enrolment | None = None
    lose: Callable[[random.Random], None] | None = None
    ends: list[Callable[[], None]] = field(default_factory=list)


def ground(kind: str, folder: Path, seed: int, port: int) -> Ground:
    """Return the ground of a kind, with its brokers started; a broker's ports are `port` and `port + 1`."""
    if kind in ("nats", "cluster"):
        ports = {"port": port, "websocket_port": port + 1} if port else {}
        enrolment = Enrolment(folder, cluster=HOSTS if kind == "cluster" else (), **ports)
        enrolment.start()
        return Ground(
            enrolment.exchange_of, enrolment, lambda chance: _lose_store(enrolment, chance), [enrolment.end]
        )
    if kind == "share":
        copies = folder / "copies"
        copies.mkdir()
        share = Synchroniser(copies, ("north", "south"), seed, party.STUDY)
        exchange = {"kind": "folder", "poll_s": 0.05}
        return Ground(lambda name: {**exchange, "url": str(copies / name)}, ends=[share.stop])

    def move_away(chance: random.Random) -> None:
        if (folder / "share").exists():  # nobody may have begun
            (folder / "share").rename(folder / f"gone-{time.monotonic_ns()}")  # at once

    return Ground(over(str(folder / "share")), lose=move_away)


def _lose_store(enrolment: Enrolment, chance: random.Random) -> None:
    """Delete the store of the broker, or of one of three, while it is down."""
    _while_down(enrolment, chance, lambda store: shutil.rmtree(store))


def _while_down(enrolment: Enrolment, chance: random.Random, change: Callable[[Path], object]) -> None:
    """Stop a random broker, change its store, and start it again."""
    number = chance.randrange(len(enrolment.brokers))
    broker = enrolment.brokers[number]
    broker.stop()
    change(broker._folder / "store")
    enrolment.brokers[number] = Broker(enrolment.authority, own=broker._folder.name)


def disturbed(
    seed: int, folder: Path, kind: str = "nats", port: int = 0, losses: bool = False
) -> dict[str, Any]:
    """Run the study of `party.py` while disturbing random parties; return its digest and a log.

    With `losses` stores are deleted, run folders restored from a back-up, and bits in them flipped, too. A
    party that ends with an error of medfed's has `told` it.
    """
    chance = random.Random(seed)
    place = ground(kind, folder, seed, port)
    study = Federation(folder, place.exchange_of, settings={"pause_s": 0.1})
    done: list[list[Any]] = []
    try:
        study.start("hub", "north", "south")
        for at in sorted(chance.uniform(0, WITHIN_S) for _ in range(chance.randint(1, MOST))):
            began = time.monotonic()
            time.sleep(at / MOST)
            _disturb(study, place, chance, losses, lambda *what: done.append(list(what)), began)
        try:
            return {"seed": seed, "digest": study.digest(), "told": _said(study), "done": done}
        except AssertionError as error:
            return {"seed": seed, "told": _told(study), "error": str(error)[-3000:], "done": done}
    finally:
        study.end()
        for end in place.ends:
            end()


def _disturb(
    study: Federation,
    place: Ground,
    chance: random.Random,
    losses: bool,
    note: Callable[..., None],
    began: float,
) -> None:
    who = chance.choice(["hub", "north", "south", *(["broker"] if place.enrolment else [])])
    how = chance.choice([*KILLS, *(LOSSES if losses else ())])
    note(round(time.monotonic() - began, 2), who, how)
    if how == "store" and place.lose is not None:
        place.lose(chance)
    elif who == "broker" and how == "bit":
        assert place.enrolment is not None
        _while_down(place.enrolment, chance, lambda store: note(0, who, _flip(store, chance)))
    elif who == "broker":
        assert place.enrolment is not None
        _disturb_broker(chance.choice(place.enrolment.brokers), how, chance)
    elif study.running[who].exitcode is not None:
        return
    elif how == "stop":
        study.stop(who)
        time.sleep(chance.uniform(0.1, 2))
        study.go_on(who)
    elif how == "back-up":
        _restore(study, who, chance)
    else:
        study.kill(who)
        if how == "bit":
            note(0, who, _flip(study.folder / who, chance))
        time.sleep(chance.uniform(0, 1))
        study.start(who)


def _disturb_broker(broker: Broker, how: str, chance: random.Random) -> None:
    pid = broker.pid
    with suppress(ProcessLookupError):  # one that was killed before, or is just being started again
        os.kill(pid, signal.SIGSTOP if how == "stop" else signal.SIGKILL)
    if how == "stop":
        time.sleep(chance.uniform(0.1, 2))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _restore(study: Federation, who: str, chance: random.Random) -> None:
    """Take a back-up of a party's folder, and put it in the place of the folder some time later."""
    own, back_up = study.folder / who, study.folder / f"back-up-{who}-{time.monotonic_ns()}"
    study.stop(who)
    shutil.copytree(own, back_up)
    study.go_on(who)
    time.sleep(chance.uniform(0.2, 1.5))
    if study.running[who].exitcode is not None:
        return
    study.kill(who)
    log = own / "log"
    if log.exists():
        shutil.copy(log, back_up / "log")
    own.rename(back_up.with_name(f"replaced-{back_up.name}"))
    back_up.rename(own)
    study.start(who)


def _flip(folder: Path, chance: random.Random) -> str:
    """Flip one bit of a random file of a party's; return which file."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.stat().st_size
        and path.name not in ("log", "settings.json", "pid", "rounds")
    ]
    if not files:
        return "no file"
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return str(path.relative_to(folder))


def _said(study: Federation) -> str:
    """Return what a site says whose optimiser is that of a back-up, or lost with a damaged model."""
    lines = (line for name in study.running for line in study.log(name).splitlines())
    return next((line for line in lines if OLDER_FOLDER in line or DAMAGED_MODEL in line), "")


def _told(study: Federation) -> str:
    """Return the error of medfed's with which a party ended; empty if there is none."""
    for name, process in study.running.items():
        if process.exitcode not in (None, 0, -signal.SIGKILL):
            last = study.log(name).strip().splitlines()[-1:]
            if last and re.match(r"medfed\.errors\.\w+: ", last[0]):
                return f"{name}: {last[0]}"
    return ""
