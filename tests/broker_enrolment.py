"""A federation's enrolment and a real nats-server on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.participants import Participant
from medfed.wire.credentials import OWN_HOST, read_federation

# A study of a table with one hospital, as its file.
TABLE_STUDY = """
name: a
task: {kind: tabular, classes: [healthy, ill]}
network: {kind: fully_connected}
data: {kind: table, target: ill, features: [age]}
train: {rounds: 3}
sites: [north]
"""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Enrolment:
    """An authority, its sites' credentials, and a broker that can be stopped and started."""

    folder: Path
    sites: Sequence[str] = ("north", "south")
    disk: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    websocket_port: int = 0
    # The hosts of a cluster's brokers, each on its own loopback address.
    cluster: tuple[str, ...] = ()
    brokers: list[Broker] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.port:
            self.port, self.websocket_port = free_ports(2)
        enrol.init(
            self.authority,
            "test",
            self.cluster or [self.host],
            self.port,
            self.websocket_port,
            listen=OWN_HOST if self.cluster else self.host,
            disk=self.disk,
            cluster_port=free_ports(1)[0] if self.cluster else None,
        )
        for site in self.sites:
            self.enrol(site)

    @property
    def authority(self) -> Path:
        return self.folder / "enrolment"

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    def enrol(self, site: str, days: int = 30) -> Participant:
        request, _ = enrol.request(self.credentials(site), site)
        kit = self.folder / f"{site}.kit"
        enrol.sign(self.authority, request, kit, days)
        return enrol.accept(self.credentials(site), kit)

    def credentials(self, party: str) -> Path:
        return self.authority / "hub" if party == "hub" else self.folder / "credentials" / party

    def exchange_of(self, party: str) -> dict[str, Any]:
        urls = [f"tls://{host}:{self.port}" for host in self.cluster or [self.host]]
        return {"kind": "nats", "credentials": str(self.credentials(party)), "urls": urls}

    def start(self) -> Broker:
        """Start the broker, or every broker of the cluster, and return the last."""
        for place in read_federation(self.authority).brokers:
            self.brokers.append(Broker(self.authority, own=place.folder))
        return self.brokers[-1]

    def wait_until_listening(self) -> None:
        """Wait until the broker takes connections: one that does not is another error than the one tested."""
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < end, "the broker does not listen"
                time.sleep(0.02)

    def end(self) -> None:
        for broker in self.brokers:
            broker.stop()
