"""The federation's records in a folder of credentials: its name, its broker's addresses, the startup kit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from medfed.errors import DECODING_ERRORS, EnrolmentError

# The broker's ports: NATS over TLS, and WebSocket over TLS for hospitals that let only 443 out; and the one
# at which the brokers of a cluster reach each other.
NATS_PORT, WEBSOCKET_PORT, CLUSTER_PORT = 4222, 443, 6222

# In the hub's folder: the hosts of a cluster's brokers, one per line.
BROKERS_FILE = "brokers.txt"

# As `listen`: each broker of a cluster listens at its own host's address only.
OWN_HOST = "host"


def host_and_port(host: str, port: int) -> str:
    """Return an address as URLs and nats-server write it: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Federation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The coordinator's record of the federation, in federation.json."""

    name: str
    hosts: list[str]
    port: int = NATS_PORT
    websocket_port: int = WEBSOCKET_PORT
    # The address on which the broker listens, and how much it may store, such as `20GB` (the whole
    # disk if empty).
    listen: str = "0.0.0.0"
    disk: str = ""
    # Whether each of `hosts` has a broker of its own, which store everything together; else one broker has
    # all these names.
    cluster: bool = False
    cluster_port: int = CLUSTER_PORT

    @property
    def brokers(self) -> list[BrokerPlace]:
        """Where the federation's brokers run: one, or those of a cluster."""
        if not self.cluster:
            return [self._place("broker", self.hosts, self.listen)]
        return [
            self._place(f"broker-{number}", [host], host if self.listen == OWN_HOST else self.listen)
            for number, host in enumerate(self.hosts, 1)
        ]

    def _place(self, folder: str, hosts: list[str], listen: str) -> BrokerPlace:
        ports = {"nats": self.port, "websocket": self.websocket_port}
        others: list[str] = []
        if self.cluster:
            ports["cluster"] = self.cluster_port
            others = [host_and_port(host, self.cluster_port) for host in self.hosts if host not in hosts]
        return BrokerPlace(folder, hosts, listen, ports, others)

    @property
    def urls(self) -> list[str]:
        """The brokers' URLs for sites: NATS over TLS first, then WebSocket over TLS."""
        direct = [f"tls://{host_and_port(host, self.port)}" for host in self.hosts]
        return direct + [f"wss://{host_and_port(host, self.websocket_port)}" for host in self.hosts]


@dataclass(frozen=True)
class BrokerPlace:
    """One broker's place: its folder in the enrolment, its hosts' names, and where it listens.

    `others` are the addresses of the other brokers of its cluster.
    """

    folder: str
    hosts: list[str]
    listen: str
    ports: dict[str, int]
    others: list[str]

    @property
    def own_host(self) -> str:
        """The address by which the broker's own machine reaches it."""
        return "127.0.0.1" if self.listen in ("0.0.0.0", "::") else self.listen

    @property
    def names(self) -> list[str]:
        """The names in the broker's certificate: the hosts for hospitals, and the one for its own machine."""
        return list(dict.fromkeys([*self.hosts, self.own_host]))

    @property
    def own_url(self) -> str:
        """The broker's URL for a hub on its own machine."""
        return f"tls://{host_and_port(self.own_host, self.ports['nats'])}"

    @property
    def listens(self) -> dict[str, str]:
        """Where the broker listens, by protocol."""
        return {protocol: host_and_port(self.listen, port) for protocol, port in self.ports.items()}


class StartupKit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a hospital receives from the coordinator; nothing in it is secret."""

    format: str
    federation: str
    site: str
    urls: list[str]
    certificate: str
    authority: str


KIT_FORMAT = "medfed-kit-1"


def read_federation(folder: Path) -> Federation:
    """Return the federation that a coordinator's folder describes.

    Raises:
        EnrolmentError: if the folder describes none.
    """
    try:
        return msgspec.json.decode((folder / "federation.json").read_bytes(), type=Federation)
    except (OSError, *DECODING_ERRORS) as error:
        raise EnrolmentError(
            f"this folder holds no federation ({type(error).__name__}); `medfed enrol init` makes one"
        ) from None


def broker_urls(credentials: Path) -> list[str]:
    """Return the broker's URLs in the kit of a credentials folder, or in the coordinator's folder."""
    if (credentials / "kit.json").exists():
        return msgspec.json.decode((credentials / "kit.json").read_bytes(), type=StartupKit).urls
    return read_federation(credentials.parent).urls
