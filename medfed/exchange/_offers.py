"""Which studies the hub offers to a site: a short list of digests for each site, and each study's own text.

    glob/site-<site>/studies/m     the digests of the studies that are offered to this site, newest last
    glob/<study>/study/m           a study's text

Several hubs of one federation write to a site's list; each looks now and then whether its own study is still
on it (`HubTransport`), since two that write at once know nothing of each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from functools import partial

import msgspec

from medfed.errors import DECODING_ERRORS, EndedError, WireError
from medfed.exchange._manifest import open_control
from medfed.exchange._object_store import ObjectStore
from medfed.exchange._protocol import OFFLINE_AFTER_HEARTBEATS, Retry, WarnOnce
from medfed.exchange._record import Offer
from medfed.exchange._study_store import OFFERS, StudyStore
from medfed.wire.signing import HUB, Seal

# How many studies are offered to a site at once; of more, the oldest are dropped.
MAX_OFFERS = 16

# How long a list or a study that is not the hub's is looked at again, where half of it may be there.
MAX_SETTLE_S = 10.0


def offers_of(site: str) -> str:
    """Return the name of the list of studies that are offered to a site."""
    return f"glob/{OFFERS}{site}/studies/m"


def offered_digests(store: ObjectStore, seal: Seal, site: str) -> list[str]:
    """Return the digests of the studies that are offered to a site, the newest last.

    Raises:
        WireError: if the list is not the hub's.
    """
    data = store.get(offers_of(site))
    if data is None:
        return []
    message = open_control(data, seal, HUB, "offers", None)
    try:
        return msgspec.json.decode(message.text, type=list[str])[-MAX_OFFERS:]
    except DECODING_ERRORS as error:
        raise WireError(f"the list of the studies that are offered is not one: {error}") from None


def offer(objects: StudyStore, sites: Iterable[str], withdrawn: bool = False) -> None:
    """Put a study on the lists of these sites, or take it off, if it is `withdrawn`."""
    own = objects.study_digest
    for site in sites:
        try:
            known = offered_digests(objects.store, objects.seal, site)
        except WireError:
            known = []  # somebody else wrote it: the hub's own takes its place
        if (own in known) == (not withdrawn):
            continue
        others = [digest for digest in known if digest != own]
        listed = others if withdrawn else [*others, own][-MAX_OFFERS:]
        objects.put_control("offers", msgspec.json.encode(listed).decode(), name=offers_of(site))


def wait_for_offers(
    store: ObjectStore,
    seal: Seal,
    site: str,
    *,
    known: Collection[str] = (),
    max_wait_s: float | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Offer]:
    """Return the studies that are offered to a site, and those `known` to it that the hub still holds.

    Waits until there is one, and closes the store. `log` is told once what is awaited.

    Raises:
        EndedError: if there is none within `max_wait_s`.
        WireError: if no study that is offered is the hub's.
    """
    began = time.monotonic()

    def check() -> None:
        if max_wait_s is not None and time.monotonic() - began > max_wait_s:
            raise EndedError(
                f"site '{site}': no study was offered to it within {max_wait_s / 3600:g} hours "
                "(give_up_hours in the site file); start it again once the coordinator says that the hub runs"
            )

    retry = Retry(WarnOnce(f"site '{site}'"), check)
    told = False
    with closing(store):
        while True:
            try:
                digests = retry("asks for the study", lambda: offered_digests(store, seal, site))
                wanted = list(dict.fromkeys([*digests, *known]))
                offers = retry("asks for the study", partial(_texts, store, seal, wanted))
            except WireError:
                if time.monotonic() - began >= min(store.settle_s, MAX_SETTLE_S):
                    raise
                offers = []  # a share that is synchronised may hold half of it
            if offers:
                if len(offers) == 1:
                    return offers
                wait_s = OFFLINE_AFTER_HEARTBEATS * store.heartbeat_s
                log(f"{len(offers)} studies are there: looks for {wait_s:g} s whose hub runs")
                return _with_liveness(store, seal, offers, retry)
            if not told:
                log(f"site {site} waits until the hub offers a study that has a site '{site}'")
            told = True
            check()
            store.wait(1.0)


def _texts(store: ObjectStore, seal: Seal, digests: Iterable[str]) -> list[Offer]:
    offers, refused = [], None
    for digest in digests:
        data = store.get(_objects(store, seal, digest).hub_object("study"))
        if data is None:
            continue
        try:
            offers.append(Offer(digest, open_control(data, seal, HUB, "study", digest).text))
        except WireError as error:
            refused = error  # another study may be right
    if refused is not None and not offers:
        raise refused
    return offers


def _with_liveness(store: ObjectStore, seal: Seal, offers: list[Offer], retry: Retry) -> list[Offer]:
    """Return the offers with whether their hubs have sent a heartbeat while this waited for one."""

    def states() -> list[bytes | None]:
        return [store.get(_objects(store, seal, one.digest).hub_object("state")) for one in offers]

    before = retry("asks whose hub runs", states)
    end = time.monotonic() + OFFLINE_AFTER_HEARTBEATS * store.heartbeat_s
    while True:
        now = retry("asks whose hub runs", states)
        live = [old != new for old, new in zip(before, now, strict=True)]
        if all(live) or time.monotonic() > end:
            return [one._replace(is_live=alive) for one, alive in zip(offers, live, strict=True)]
        store.wait(0.5)


def _objects(store: ObjectStore, seal: Seal, digest: str) -> StudyStore:
    return StudyStore(store, seal, digest, HUB)
