"""How a cluster's brokers learn who may do what: the hub stores it there, signed, and each takes newer ones.

The brokers' folders are copied to their machines once. From then on a site that is enrolled or revoked, and a
study that begins, come to them by themselves, as soon as a hub of the federation runs. A broker takes rights
that the hub's certificate signed, and of a higher version than its own only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from medfed.deployment.background import run_periodically
from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.configuration import (
    Rights,
    read_member,
    read_rights,
    read_version,
    rights_of,
    take_rights,
    write_configuration,
)
from medfed.errors import DECODING_ERRORS, ExchangeError, WireError
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._object_store import Unreachable
from medfed.wire.signing import HUB, Identity

# The object's name at the brokers; how often hub and brokers look; and the study of the connections, none.
NAME, CHECK_S, _NO_STUDY = "brokers/rights/m", 5.0, "-"


def open_rights(data: bytes, identity: Identity) -> Rights:
    """Return the rights that the hub signed.

    Raises:
        WireError: if they are not the hub's.
    """
    try:
        return msgspec.json.decode(identity.open(data, HUB), type=Rights)
    except DECODING_ERRORS as error:
        raise WireError(f"expected who may do what at the brokers: {error}") from None


# ------------------------------------------------------------------------------------------------- the hub


@contextmanager
def publish_rights(
    enrolment: Path, urls: list[str], log: Callable[[str], None], timeout_s: float = 120.0
) -> Iterator[None]:
    """Keep the brokers' rights up to date while the block runs, and say which brokers are not reached."""
    identity = Identity(enrolment / HUB)
    told: set[str] = {""}

    def say(text: str) -> None:
        if text not in told:
            log(text)
        # The next of another kind is new again: a broker that ends twice is told twice.
        told.clear()
        told.add(text)

    with closing(NatsStore(urls, identity, _NO_STUDY, timeout_s)) as store:

        def check() -> None:
            try:
                if rights_of(enrolment) != read_rights(enrolment):
                    write_configuration(enrolment)  # a hub has admitted sites to its study since
                store_rights(store, identity, enrolment, log)
                say(_offline(store.offline_brokers()))
            except (Unreachable, OSError):
                pass  # the hub itself says what it waits for

        with run_periodically(CHECK_S, check, "medfed-rights"):
            yield


def store_rights(store: NatsStore, identity: Identity, enrolment: Path, log: Callable[[str], None]) -> bool:
    """Store the rights of a coordinator's folder at the brokers; return whether theirs were others.

    Raises:
        Unreachable: if the brokers do not answer.
    """
    own, data = read_rights(enrolment), store.get(NAME)
    assert own is not None
    try:
        theirs = None if data is None else open_rights(data, identity)
    except WireError:
        theirs = None
    if own == theirs:
        return False
    if theirs is not None and theirs.version > own.version:
        log(
            f"the brokers hold newer rights ({theirs.version}) than this enrolment folder ({own.version}): "
            "was it restored from a back-up? Enrol or revoke again what is missing, then run `medfed enrol "
            "refresh`"
        )
        return False
    store.put(NAME, identity.seal(msgspec.json.encode(own)))
    return True


def _offline(brokers: tuple[str, ...]) -> str:
    if not brokers:
        return ""
    return (
        f"{', '.join(brokers)}: the other brokers do not reach it; the study goes on, and if one more ends, "
        "everything waits. Start it again with `medfed broker` on its machine"
    )


# ------------------------------------------------------------------------------------------------ a broker


def run_broker(folder: Path, log: Callable[[str], None]) -> None:
    """Run one broker of a cluster from its folder until it is interrupted, and keep its rights up to date.

    Raises:
        EnrolmentError: if the folder is not that of a cluster's broker.
        ExchangeError: if its certificate is not usable, or another process runs this broker.
    """
    folder = folder.resolve()
    member, identity = read_member(folder), Identity(folder).check()
    rights = read_rights(folder)
    if rights is not None:
        take_rights(folder, rights)  # an update of medfed may have changed the template
    broker = Broker(folder.parent, on_refused=log, own=folder.name)
    try:
        if broker.pid == 0:
            raise ExchangeError("another process runs this broker already; stop that one first")
        log(
            f"{member.folder} of the federation {member.federation.name} listens at "
            f"{member.place.listens['nats']}; it stores something while two of the "
            f"{len(member.federation.hosts)} brokers run and reach each other"
        )
        with closing(NatsStore([member.place.own_url], identity, _NO_STUDY)) as store:
            _follow_rights(store, identity, folder, log)
    finally:
        broker.stop()


def _follow_rights(store: NatsStore, identity: Identity, folder: Path, log: Callable[[str], None]) -> None:
    told = ""
    while True:
        text = ""
        try:
            if fetch_rights(store, identity, folder):
                log(f"who may do what has changed: version {read_version(folder)}")
        except Unreachable as error:
            text = f"who may do what is not read from the brokers: {error}"
        except WireError as error:
            text = f"who may do what is refused: {error}; the former rights remain"
        if text not in ("", told):
            log(text)
        told = text
        time.sleep(CHECK_S)


def fetch_rights(store: NatsStore, identity: Identity, folder: Path) -> bool:
    """Take the rights that the hub stored if they are newer than those in a broker's folder.

    Raises:
        Unreachable: if the brokers do not answer.
        WireError: if they are not the hub's.
    """
    data = store.get(NAME)
    if data is None:
        return False
    rights = open_rights(data, identity)
    return rights.version > read_version(folder) and take_rights(folder, rights)
