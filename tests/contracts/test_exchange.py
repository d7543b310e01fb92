"""Memory, a folder, object storage and a broker keep the contract of an exchange of medfed.testing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from broker_enrolment import free_ports
from contract import checks_of, run

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.broker import Broker
from medfed.errors import ExchangeError
from medfed.exchange import MemoryExchange, Offer
from medfed.exchange._admitted import record_admitted
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.registry import kinds
from medfed.testing import check_exchange
from medfed.testing._exchange import PATIENCE_S, OpenableExchange, Parties, update


class OneProcess:
    """The memory exchange, of which all parties of a study hold the same object."""

    def __init__(self) -> None:
        self.exchanges: dict[str, MemoryExchange] = {}

    def open_hub(self, study: str, folder: Path) -> MemoryExchange:
        return self.exchanges.setdefault(study, MemoryExchange(study))

    def open_site(self, study: str, site: str, folder: Path) -> MemoryExchange:
        return self.open_hub(study, folder)

    def offered_studies(self, site: str) -> list[Offer]:
        raise NotImplementedError


@dataclass(frozen=True)
class Credentials:
    """A broker, reached with the credentials of the hub or of a site."""

    enrolment: Path
    urls: list[str]

    def open_hub(self, study: str, folder: Path) -> Any:
        # As `medfed hub` does: from the first study that is offered on, the broker serves no other.
        record_admitted(self.enrolment, study, ["north", "south"])
        return self._record("hub").open_hub(study, folder)

    def open_site(self, study: str, site: str, folder: Path) -> Any:
        return self._record(site).open_site(study, site, folder)

    def offered_studies(self, site: str) -> list[Offer]:
        return self._record(site).offered_studies(site)

    def _record(self, party: str) -> Nats:
        return Nats(credentials=str(self.enrolment / party), urls=self.urls)


def broker(folder: Path, scheme: str) -> Iterator[Credentials]:
    """A real nats-server on loopback with mutual TLS and one account per site."""
    enrolment = folder / "enrolment"
    port, websocket_port = free_ports(2)
    enrol.init(enrolment, "test", ["127.0.0.1"], port, websocket_port, listen="127.0.0.1")
    for site in ("north", "south"):
        request, _ = enrol.request(enrolment / site, site)
        enrol.sign(enrolment, request, folder / f"{site}.kit")
        enrol.accept(enrolment / site, folder / f"{site}.kit")
    server = Broker(enrolment)
    try:
        # The kit names both URLs, of which the first is used.
        yield Credentials(enrolment, [] if scheme == "tls" else [f"wss://127.0.0.1:{websocket_port}"])
    finally:
        server.stop()


def memory(folder: Path) -> Iterator[OneProcess]:
    yield OneProcess()


def shared_folder(folder: Path) -> Iterator[Folder]:
    yield Folder(url=str(folder / "share"), poll_s=0.02)


def objects(folder: Path) -> Iterator[Folder]:
    """fsspec's object storage in memory: no rename, and a written object replaces the one before."""
    yield Folder(url=f"memory://{folder}/bucket", poll_s=0.02)


EXCHANGES = {
    "memory": memory,
    "folder": shared_folder,
    "objects": objects,
    "nats": lambda folder: broker(folder, "tls"),
    "wss": lambda folder: broker(folder, "wss"),
}


@pytest.fixture(params=EXCHANGES, scope="module")
def exchange(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenableExchange]:
    yield from EXCHANGES[request.param](tmp_path_factory.mktemp(request.param))


@checks_of(check_exchange)
def test_it_keeps_the_contract(exchange: OpenableExchange, check: str) -> None:
    run(check_exchange, check, exchange)


def test_every_exchange_of_the_registry_is_here() -> None:
    """Those in which another framework's hub merges keep a contract of their own: test_other_networks.py."""
    own = {name for name, record in kinds("exchange").items() if getattr(record, "own_hub", True)}
    assert own <= set(EXCHANGES)


def test_memory_and_broker_are_signed_and_a_folder_is_not(exchange: OpenableExchange, tmp_path: Path) -> None:
    parties = Parties(exchange, tmp_path)
    hub, north = parties.hub(), parties.site("north")
    assert north.signed is not isinstance(exchange, Folder)
    for side in (north, hub):
        parties.close(side)


def test_an_update_of_another_study_is_refused_and_the_round_goes_on(
    exchange: OpenableExchange, tmp_path: Path
) -> None:
    parties = Parties(exchange, tmp_path)
    hub, south = parties.with_first_model("south")
    # Sent by a site whose study file differs after the digest's first characters, as an attacker could
    # arrange.
    south._study = parties.study[:-4] + "0000"
    south.send(update("south"))
    south._study = parties.study
    (received,) = hub.collect(1, ["south"], PATIENCE_S)
    assert received.update is None
    assert "belongs to study" in str(received.error)
    for side in (south, hub):
        side.close()


@pytest.mark.parametrize("name", ["hub", "broker", "a/b", "..", "a b", ""])
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    exchange = Folder(url=str(tmp_path / "share"), poll_s=0.02)
    with pytest.raises(ExchangeError, match="a site's name is 1 to 64 letters"):
        exchange.open_site("ab" * 32, name, tmp_path / "site")
