"""The federation's records in a folder of credentials: its name, its broker's addresses, the startup kit."""

from __future__ import annotations

from pathlib import Path

import msgspec

from medfed.errors import EnrolmentError

# The broker's ports: NATS over TLS, and WebSocket over TLS for hospitals that let only 443 out.
NATS_PORT, WEBSOCKET_PORT = 4222, 443


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

    @property
    def own_host(self) -> str:
        """The address by which the broker's own machine reaches it."""
        return "127.0.0.1" if self.listen in ("0.0.0.0", "::") else self.listen

    @property
    def names(self) -> list[str]:
        """The names in the broker's certificate: the hosts for hospitals, and the one for a local hub."""
        return list(dict.fromkeys([*self.hosts, self.own_host]))

    @property
    def urls(self) -> list[str]:
        """The broker's URLs for sites: NATS over TLS first, then WebSocket over TLS."""
        direct = [f"tls://{host_and_port(host, self.port)}" for host in self.hosts]
        return direct + [f"wss://{host_and_port(host, self.websocket_port)}" for host in self.hosts]

    @property
    def own_url(self) -> str:
        """The broker's URL for a hub on its own machine."""
        return f"tls://{host_and_port(self.own_host, self.port)}"

    @property
    def listens(self) -> dict[str, str]:
        """Where the broker listens, by protocol."""
        return {
            "nats": host_and_port(self.listen, self.port),
            "websocket": host_and_port(self.listen, self.websocket_port),
        }


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
    except (OSError, msgspec.MsgspecError) as error:
        raise EnrolmentError(
            f"this folder holds no federation ({type(error).__name__}); `medfed enrol init` makes one"
        ) from None


def broker_urls(credentials: Path) -> list[str]:
    """Return the broker's URLs in the kit of a credentials folder, or in the coordinator's folder."""
    if (credentials / "kit.json").exists():
        return msgspec.json.decode((credentials / "kit.json").read_bytes(), type=StartupKit).urls
    return read_federation(credentials.parent).urls
