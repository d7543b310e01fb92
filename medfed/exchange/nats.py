"""Sites and hub meet at a NATS JetStream broker: mutual TLS, one account per site, outbound connections."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated

import msgspec

from medfed.errors import ExchangeError
from medfed.exchange._hub_transport import HubTransport
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._offers import wait_for_offers
from medfed.exchange._record import Exchange, Offer
from medfed.exchange._site_transport import SiteTransport
from medfed.exchange._study_store import OFFERS
from medfed.exchange.folder import without_password
from medfed.wire.credentials import broker_urls
from medfed.wire.signing import HUB, Identity


class Nats(Exchange, frozen=True, tag="nats"):
    """A NATS JetStream broker with mutual TLS, one account per site, and outbound connections.

    `credentials` is the folder with this party's key and certificate (`medfed enrol`). `urls` are tried in
    turn (`tls://host:4222`, `wss://host:443`); the default is those of the startup kit. `proxy` is an HTTP
    proxy (`http://proxy.hospital.example:3128`) through which the `wss` ones are reached by CONNECT.
    """

    credentials: str = ""
    urls: list[str] = []  # noqa: RUF012
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    proxy: str = ""

    def addresses(self) -> tuple[str, ...]:
        urls = self.urls or (broker_urls(Path(self.credentials)) if self.credentials else [])
        listed = tuple(map(without_password, urls))
        return (*listed, f"through the proxy {without_password(self.proxy)}") if self.proxy else listed

    def open_hub(self, study_digest: str, folder: Path) -> HubTransport:
        identity = self._identity()
        if identity.name != HUB:
            raise ExchangeError(
                f"exchange.credentials: they are those of '{identity.name}'; the hub needs those in the "
                f"folder 'hub' that `medfed enrol init` made"
            )
        return HubTransport(self._store(study_digest, identity), identity, study_digest, folder)

    def open_site(self, study_digest: str, site: str, folder: Path) -> SiteTransport:
        identity = self._identity()
        if identity.name != site:
            raise ExchangeError(
                f"exchange.credentials: they are those of '{identity.name}', this is site '{site}'"
            )
        return SiteTransport(self._store(study_digest, identity), identity, study_digest, site, folder)

    def offered_studies(
        self,
        site: str,
        *,
        known: Collection[str] = (),
        max_wait_s: float | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> list[Offer]:
        identity = self._identity()
        store = self._store(f"{OFFERS}{site}", identity)
        return wait_for_offers(store, identity, site, known=known, max_wait_s=max_wait_s, log=log)

    def _identity(self) -> Identity:
        if not self.credentials:
            raise ExchangeError(
                "exchange.credentials is missing: `nats` needs the folder that `medfed enrol` made"
            )
        return Identity(Path(self.credentials)).check()

    def _store(self, study_digest: str, identity: Identity) -> NatsStore:
        urls = self.urls or broker_urls(identity.folder)
        if self.proxy:
            urls = [url for url in urls if url.startswith("wss://")]
            if not self.proxy.startswith("http://") or not urls:
                raise ExchangeError(
                    f"exchange.proxy: '{self.proxy}': an HTTP proxy is given as http://host:port and reaches "
                    f"a broker only by wss://; there {'is no such url' if not urls else 'is one'} in "
                    f"exchange.urls or the kit"
                )
        return NatsStore(urls, identity, study_digest, self.timeout_s, self.proxy)
