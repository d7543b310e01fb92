"""A hub that lies, for the contract of a privacy mechanism whose sites agree on keys.

`MaliciousHub` is an exchange whose hub may send anything, to any site, at any step: `lie` gets each message
before it is sent and returns another. It has the keys of the hub, the broker, an enrolled stranger and the
sites that collude. What it tries is in `PARTY_LIES`, `FORWARDING_LIES` and `LIST_LIES`: each is told to one
site, which must refuse with a reason and an audit entry, while the round goes on with the others. It can also
repeat an earlier run under that run's number (`REPLAYS`), and ask for a second sum of a round.

A mechanism forwards sites' messages as `RelayedMessages`, so that these lies reach it without an edit here.
"""

from __future__ import annotations

import re
import threading
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import DECODING_ERRORS, MedfedError, QuorumError
from medfed.exchange import DropOut, MemoryExchange, ReceivedUpdate
from medfed.federation.config import HubConfig
from medfed.federation.round import RoundOutcome, SiteConnection, aggregate_round, receive, send_update
from medfed.privacy import Privacy
from medfed.privacy._key_exchange import RelayedMessages
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.messages import Message, ReceivedMessage, Statement, seal_message
from medfed.wire.signing import HUB, Seal
from medfed.wire.update import GlobalModel, Update, model_digest

STUDY, OTHER_STUDY = "5e" * 32, "0f" * 32
PARTY, STRANGER = "broker", "stranger"

# A point of order 8 on curve25519, which with any private key gives the secret 0 (RFC 7748, section 6.1).
SMALL_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")

Forwarded = Mapping[str, bytes]
# What is sent instead of a message for a step to a site; called with site, step and data.
Lie = Callable[[str, str, bytes], bytes]


def truthful(site: str, step: str, data: bytes) -> bytes:
    """Return a message as it is."""
    return data


def forwarded_in(data: bytes) -> Forwarded | None:
    """Return the sites' messages that a message of the hub forwards, or None if it forwards none."""
    try:
        found = msgspec.json.decode(data, type=_Relaying).messages
    except DECODING_ERRORS:
        return None
    return found or None


class _Relaying(RelayedMessages, frozen=True, forbid_unknown_fields=False):
    """`RelayedMessages`, whatever else is in the message."""


# How long a round goes on for a site that was lied to and has not answered yet.
LIED_TO_S = 2.0


class MaliciousHub(MemoryExchange):
    """An exchange whose hub sends what `lie` returns, and to `deceived` sites the model `other_model` makes.

    `seals` gives each party's seal, for a test with certificates; by default each has a key of this object.
    `sent` holds what the honest hub would have sent to each site, by step, `said` what each site sent it, and
    `steps` the steps it collected, with '' for the updates. It ignores the answers of the step `discarded`
    once, then what `hidden` trains.
    """

    def __init__(
        self,
        parties: tuple[str, ...],
        lie: Lie = truthful,
        deceived: Sequence[str] = (),
        other_model: Callable[[GlobalModel], GlobalModel] = lambda model: model,
        seals: Callable[[str], Seal] | None = None,
    ) -> None:
        super().__init__(STUDY, parties=parties)
        self.lie, self.seals = lie, seals
        self.deceived, self.other_model = deceived, other_model
        self.sent: dict[str, dict[str, bytes]] = {}
        self.lied_to: set[str] = set()
        self.said: dict[str, list[bytes]] = {}
        self.steps: list[str] = []
        self.discarded, self.hidden = "", ""
        self._discards = True
        self._true_model = ""

    def repeat(self, earlier: MaliciousHub) -> None:
        """Take the number of an earlier run, whose sites had the same certificates."""
        self._run, self._keys = earlier._run, earlier._keys

    def publish(self, model: GlobalModel, ensure_saved: Callable[[], None] = lambda: None) -> int:
        self._true_model = model_digest(model)
        return super().publish(model, ensure_saved)

    def fetch(self, site: str, round: int) -> GlobalModel:
        model = super().fetch(site, round)
        # Each site measures the digest of what it was sent.
        return replace(self.other_model(model), sha256="") if site in self.deceived else model

    def send_messages(
        self, round: int, attempt: int, step: str, messages: Mapping[str, bytes]
    ) -> Mapping[str, bytes]:
        self.sent.setdefault(step, {}).update(messages)
        lies = {site: self.lie(site, step, data) for site, data in messages.items()}
        self.lied_to.update(site for site, data in messages.items() if lies[site] != data)
        super().send_messages(round, attempt, step, lies)
        return messages

    def collect_messages(
        self, round: int, attempt: int, step: str, sites: Sequence[str], deadline_s: float | None
    ) -> Iterator[ReceivedMessage]:
        self.steps.append(step)
        if step == self.discarded and self._discards:
            self._discards = False
            return
        # It does not mind that a site trains from another model: it sent that model.
        for received in super().collect_messages(round, attempt, step, sites, deadline_s):
            if received.message is not None:
                statement = msgspec.json.decode(received.message.data, type=Statement)
                self.said.setdefault(received.site, []).append(statement.content)
                data = msgspec.json.encode(Statement(self._true_model, statement.content))
                received = replace(received, message=msgspec.structs.replace(received.message, data=data))
            yield received

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        self.steps.append("")
        for received in super().collect(round, sites, deadline_s):
            if self._discards or received.site != self.hidden:
                yield received

    def _seal(self, party: str) -> Seal:
        return self.seals(party) if self.seals is not None else super()._seal(party)

    def sealed(self, like: bytes, by: str, renew: bool = False, **changes: Any) -> bytes:
        """Return a message like this one, sealed by a party, with other fields and, by `renew`, keys."""
        message = msgspec.json.decode(like.partition(b"\n")[2], type=Message)
        if renew:
            statement = msgspec.json.decode(message.data, type=Statement)
            content = _with_keys(statement.content, lambda: X25519PrivateKey.generate())
            changes["data"] = msgspec.json.encode(Statement(statement.model, content))
        return seal_message(msgspec.structs.replace(message, **{"party": by, **changes}), self._seal(by))

    def with_small_order(self, like: bytes, party: str) -> bytes:
        """Return a colluding site's message with public keys that give everybody the same secret."""
        message = msgspec.json.decode(like.partition(b"\n")[2], type=Message)
        statement = msgspec.json.decode(message.data, type=Statement)
        content = _with_keys(statement.content, lambda: None)
        return self.sealed(like, party, data=msgspec.json.encode(Statement(statement.model, content)))


def _with_keys(content: bytes, draw: Callable[[], X25519PrivateKey | None]) -> bytes:
    """Return a message's content with other public keys: every text of 32 bytes in it may be one."""

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: other(one) for name, one in value.items()}
        try:
            raw = b64decode(value, validate=True) if isinstance(value, str) else b""
        except (Base64Error, ValueError):
            return value
        key = draw() if len(raw) == len(SMALL_ORDER) else None
        if len(raw) != len(SMALL_ORDER):
            return value
        return b64encode(SMALL_ORDER if key is None else key.public_key().public_bytes_raw()).decode()

    return msgspec.json.encode(other(msgspec.json.decode(content)))


# ---------------------------------------------------------------------------------------------- what it tries

# Returns what the victim is told instead of the forwarded messages.
Change = Callable[[MaliciousHub, str, Forwarded], Forwarded]


def _adds(party: str) -> Change:
    def change(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
        return {**told, party: hub.sealed(told[_other(victim, told)], party, renew=True)}

    return change


def _each(make: Callable[[MaliciousHub, str, bytes], bytes]) -> Change:
    def change(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
        return {party: make(hub, party, sealed) for party, sealed in told.items()}

    return change


def _other(victim: str, told: Forwarded) -> str:
    return min(party for party in told if party != victim)


def _swapped(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
    one, two = sorted(party for party in told if party != victim)[:2]
    return {**told, one: told[two], two: told[one]}


def _twice(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
    one, two = sorted(party for party in told if party != victim)[:2]
    return {**told, two: hub.sealed(told[one], two)}


def _small(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
    colluding = _other(victim, told)
    return {**told, colluding: hub.with_small_order(told[colluding], colluding)}


def _few(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
    return {party: told[party] for party in (victim, _other(victim, told))}


def _without(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
    return {party: sealed for party, sealed in told.items() if party != victim}


def _own_old(hub: MaliciousHub, victim: str, told: Forwarded) -> Forwarded:
    return {**told, victim: hub.sealed(told[victim], victim, round=0)}


def _no_party(party: str) -> str:
    return f"the hub shows '{party}' as a party, expected hospitals that train in the study"


# About who the parties are, where they show their keys: by name, what is changed and how it is refused.
PARTY_LIES: dict[str, tuple[Change, str]] = {
    "the hub as a party": (_adds(HUB), _no_party(HUB)),
    "the broker as a party": (_adds(PARTY), _no_party(PARTY)),
    "an enrolled stranger": (_adds(STRANGER), _no_party(STRANGER)),
    "a name that looks alike": (_adds("Alfa"), _no_party("Alfa")),
    "a truncated list": (_few, r"2 of \d+ hospitals showed keys, \d+ are needed"),
    "a list without the victim": (_without, "lacks this site's own"),
    "the victim's older keys": (_own_old, "a copy of an older one"),
    "one site twice": (_twice, "show the same key: one speaks for both"),
    "a key of small order": (_small, "it has small order"),
    "keys swapped": (_swapped, "in the name of '.*' that is not from it"),
}

_NOT_FROM = "in the name of '.*' that is not from it"

# About any message that the hub forwards, at any step.
FORWARDING_LIES: dict[str, tuple[Change, str]] = {
    "changed on the way": (_each(lambda hub, party, sealed: sealed + b" "), _NOT_FROM),
    "written by the hub": (
        _each(lambda hub, party, sealed: hub.sealed(sealed, HUB, renew=True, party=party)),
        _NOT_FROM,
    ),
    "in another's name": (_each(lambda hub, party, sealed: hub.sealed(sealed, party, party=HUB)), _NOT_FROM),
    "of an older round": (
        _each(lambda hub, party, sealed: hub.sealed(sealed, party, round=0)),
        "a copy of an older one",
    ),
    "of another attempt": (
        _each(lambda hub, party, sealed: hub.sealed(sealed, party, attempt=7)),
        "a copy of an older one",
    ),
    "of another step": (
        _each(lambda hub, party, sealed: hub.sealed(sealed, party, step="other")),
        "a copy of an older one",
    ),
    "of another run": (_each(lambda hub, party, sealed: hub.sealed(sealed, party, run="0" * 32)), _NOT_FROM),
    "of another study": (
        _each(lambda hub, party, sealed: hub.sealed(sealed, party, study=OTHER_STUDY)),
        _NOT_FROM,
    ),
    "of another version": (
        _each(lambda hub, party, sealed: hub.sealed(sealed, party, format="x")),
        _NOT_FROM,
    ),
    "no message at all": (_each(lambda hub, party, sealed: b"{}"), _NOT_FROM),
    "an endless nesting": (_each(lambda hub, party, sealed: b"[" * 100_000), _NOT_FROM),
}


# What is told instead of the lists of sites in a message, by field; called with them and the victim.
Lists = Mapping[str, list[str]]
ListChange = Callable[[Lists, str], Lists]

_OF_THE_LIST = "the hub.s list|the hub asks for|shares of both kinds|are needed"


def _filled(lists: Lists, make: Callable[[list[str]], list[str]]) -> Lists:
    return {field: make(sites) if sites else sites for field, sites in lists.items()}


def _dropped(lists: Lists, victim: str) -> Lists:
    """Move one site that is there to the list of those that are not, or leave it out."""
    gone = min(site for sites in lists.values() for site in sites if site != victim)
    return {field: [site for site in sites if site != gone] or [gone] for field, sites in lists.items()}


def _both(lists: Lists, victim: str) -> Lists:
    return dict.fromkeys(lists, sorted({site for sites in lists.values() for site in sites}))


# About who is in a sum, once keys and shares are there: lists of sites in any message of the hub.
LIST_LIES: dict[str, tuple[ListChange, str]] = {
    "a member after the shares": (
        lambda lists, victim: _filled(lists, lambda sites: [*sites, STRANGER]),
        _OF_THE_LIST,
    ),
    "a member twice": (lambda lists, victim: _filled(lists, lambda sites: [sites[0], *sites]), _OF_THE_LIST),
    "a dropout that is none": (_dropped, _OF_THE_LIST),
    "shares of both kinds": (_both, _OF_THE_LIST),
    "nobody": (lambda lists, victim: _filled(lists, lambda sites: []), _OF_THE_LIST),
    "one site alone": (lambda lists, victim: _filled(lists, lambda sites: sites[:1]), _OF_THE_LIST),
}

# What is forwarded when an earlier run is repeated under its own number, given what the victim was told then
# and is told now. Old keys and new boxes do not fit.
Replay = Callable[[str, Forwarded, Forwarded], Forwarded]
_OLD = "lacks this site's own|the shares of .* do not open|was shown other keys|no key that opens here"


def _but_its_own(victim: str, then: Forwarded, now: Forwarded) -> Forwarded:
    return {party: now.get(party, old) if party == victim else old for party, old in then.items()}


REPLAYS: dict[str, tuple[Replay, str]] = {
    "all of an earlier run": (lambda victim, then, now: then, _OLD),
    "all but its own of an earlier run": (_but_its_own, _OLD),
}


# ---------------------------------------------------------------------------------------- a round under a lie


@dataclass
class LiedRound:
    """How a round ended: each site's error, its audit entries on the hub, and the hub's outcome or error.

    `sent` are the sites whose updates left.
    """

    ends: dict[str, BaseException | None] = field(default_factory=dict)
    logged: dict[str, list[str]] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    outcome: RoundOutcome | MedfedError | None = None

    @property
    def merged(self) -> list[str]:
        """The sites whose updates are in the merged model."""
        if not isinstance(self.outcome, RoundOutcome):
            return []
        return [result.site for result in self.outcome.results if result.status == "merged"]


def round_under(
    privacy: Privacy, hub: MaliciousHub, updates: Mapping[str, Update], minimum: int
) -> LiedRound:
    """Run a round of these updates, whose model is zero, with a lying hub."""
    sites, found = tuple(sorted(updates)), LiedRound()
    weights = {name: torch.zeros_like(tensor) for name, tensor in next(iter(updates.values())).delta.items()}
    current = GlobalModel(0, weights, study_digest=STUDY, groups=privacy.init(weights))
    hub.publish(current)
    with TemporaryDirectory() as folder:
        logs = {site: Path(folder) / f"{site}.jsonl" for site in sites}

        def work(site: str) -> None:
            connection = SiteConnection(site, hub, privacy, audit=AuditLog(logs[site]), parties=sites)
            try:
                received = receive(connection, 0)
                send_update(connection, updates[site], received.weights, model_sha256=received.sha256)
                found.ends[site] = None
            except BaseException as error:  # noqa: BLE001 - how it ended is what is asked
                found.ends[site] = error
                hub.drop_out(site, DropOut.PRIVACY)

        threads = [threading.Thread(target=work, args=(site,), daemon=True) for site in sites]
        for thread in threads:
            thread.start()
        config = HubConfig(1, sites, FedAvg(), privacy, minimum=minimum, study_digest=STUDY, outlier=None)
        try:
            outcome = _aggregated(hub, config, current)
            found.outcome = outcome
            # On a busy machine a site may not have read the lie yet, and would see the end of the round.
            for site, thread in zip(sites, threads, strict=True):
                thread.join(LIED_TO_S if site in hub.lied_to else 0)
            hub.publish(GlobalModel(1, outcome.weights, study_digest=STUDY))
        except MedfedError as error:
            found.outcome = error
        finally:
            hub.close()
        for thread in threads:
            thread.join()
        for site, log in logs.items():
            lines = list(entries(log)) if log.exists() else []
            found.sent.update(site for line in lines if line["event"] == "sent")
            found.logged[site] = [line["reason"] for line in lines if line["event"] == "hub refused"]
    return found


def _aggregated(hub: MaliciousHub, config: HubConfig, current: GlobalModel) -> RoundOutcome:
    """Merge a round; if its hub discarded an answer, merge it again."""

    def once() -> RoundOutcome:
        state = config.privacy.init(current.weights)
        return aggregate_round(hub, config, state, current, config.sites, AuditLog(None))

    if not hub.discarded:
        return once()
    with suppress(QuorumError):
        once()
        raise AssertionError(f"the hub merged without the answers for '{hub.discarded}'")
    return once()


def lying_to(hub: MaliciousHub, victim: str, step: str, change: Change) -> Lie:
    """Return the lie that changes what the hub forwards to one site at one step."""

    def lie(site: str, at: str, data: bytes) -> bytes:
        told = forwarded_in(data)
        if (site, at) != (victim, step) or told is None:
            return data
        content = {**msgspec.json.decode(data), "letters": change(hub, victim, told)}
        return msgspec.json.encode(content)

    return lie


def lying_about_lists(victim: str, step: str, change: ListChange) -> Lie:
    """Return the lie that changes the lists of sites in what the hub tells one site at one step."""

    def lie(site: str, at: str, data: bytes) -> bytes:
        if (site, at) != (victim, step):
            return data
        return msgspec.json.encode({**msgspec.json.decode(data), **change(lists_in(data), victim)})

    return lie


def lists_in(data: bytes) -> Lists:
    """Return the lists of sites in a message of the hub, by field; none if no list names a site."""
    try:
        content = msgspec.json.decode(data)
    except DECODING_ERRORS:
        return {}
    lists = {
        field: value
        for field, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, list) and all(isinstance(one, str) for one in value)
    }
    return lists if any(lists.values()) else {}


def listing_steps(hub: MaliciousHub, site: str) -> dict[str, Lists]:
    """Return the steps at which the hub told a site who is in the sum, and the lists."""
    told = {step: lists_in(sent[site]) for step, sent in hub.sent.items() if site in sent}
    return {step: lists for step, lists in told.items() if lists}


def replaying(earlier: MaliciousHub, victim: str, step: str, replay: Replay) -> Lie:
    """Return the lie that forwards to one site, at one step, what an earlier run's hub forwarded to it."""
    then = forwarded_in(earlier.sent[step][victim])
    assert then is not None, f"the earlier run forwarded nothing at step '{step}'"

    def lie(site: str, at: str, data: bytes) -> bytes:
        now = forwarded_in(data)
        if (site, at) != (victim, step) or now is None:
            return data
        return msgspec.json.encode({**msgspec.json.decode(data), "letters": replay(victim, then, now)})

    return lie


def steps_after_updates(hub: MaliciousHub) -> list[str]:
    """Return the steps in which the hub collects messages after the updates."""
    return hub.steps[hub.steps.index("") + 1 :]


def forwarding_steps(hub: MaliciousHub, site: str) -> list[str]:
    """Return the steps at which the hub forwarded other sites' messages to a site."""
    return [step for step, told in hub.sent.items() if site in told and forwarded_in(told[site]) is not None]


def require_refusal(found: LiedRound, victim: str, reason: str, what: str) -> None:
    """Check that a site refused with this reason, and wrote it to its audit log.

    Raises:
        AssertionError: saying what it did instead.
    """
    error = found.ends[victim]
    assert isinstance(error, MedfedError), f"{what}: '{victim}' did not refuse, it ended with {error!r}"
    assert re.search(reason, str(error)), f"{what}: expected a reason matching {reason!r}, found: {error}"
    assert found.logged[victim] == [str(error)], f"{what}: no audit entry 'hub refused' with the reason"
