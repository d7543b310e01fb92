"""A hub at a broker, and a site behind a proxy that can slow, cut or corrupt its connection."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch
from proxy import Proxy

from medfed.exchange.nats import Nats
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest

STUDY = "34" * 32
PATIENCE_S = 120
MEGABYTES = 12


def model(value: float = 1.0, megabytes: int = MEGABYTES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {f"layer{index}": torch.randn(250_000, generator=generator) * value for index in range(megabytes)}


def update(round: int = 1, megabytes: int = MEGABYTES) -> Update:
    weights = model(megabytes=megabytes)
    local = {name: tensor + 1 for name, tensor in weights.items()}
    return Update("north", round, Difference(local, weights), 12)


class Link:
    """A hub at a broker, and the site north behind a proxy."""

    def __init__(self, enrolment, folder: Path, megabytes: int = MEGABYTES) -> None:
        self.enrolment, self.folder = enrolment, folder
        self.broker = enrolment.start()
        self.proxy = Proxy(enrolment.port)
        self.hub = Nats(**enrolment_record(enrolment, "hub")).open_hub(STUDY, folder / "hub")
        self.hub.publish(GlobalModel(0, model(megabytes=megabytes), study_digest=STUDY))
        self.north = self.site()

    def site(self, folder: str = "north"):
        record = enrolment_record(self.enrolment, "north")
        return Nats(**{**record, "urls": [f"tls://127.0.0.1:{self.proxy.port}"]}).open_site(
            STUDY, "north", self.folder / folder
        )

    def arrived(self, round: int = 1) -> str:
        """Return the digest of north's update once the hub has it."""
        (arrival,) = self.hub.collect(round, ["north"], PATIENCE_S)
        assert arrival.error is None, arrival.error
        return digest(arrival.update.delta.minuend)

    def close(self) -> None:
        self.north.close()
        self.hub.close()
        self.proxy.close()


def enrolment_record(enrolment, party: str) -> dict:
    return {"credentials": str(enrolment.credentials(party)), "urls": [enrolment.url]}


def sent_digest(megabytes: int = MEGABYTES) -> str:
    return digest(update(megabytes=megabytes).delta.minuend)


def background(call) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def until(what, why: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, f"waited in vain until {why}"
        time.sleep(0.01)
