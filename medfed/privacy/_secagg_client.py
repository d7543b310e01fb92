"""A secure sum at a site: its keys, its update's masks, and the shares that unmask the sum."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from medfed.errors import PrivacyError, WireError
from medfed.privacy._masks import FixedPoint, Scratch, Stream, masked
from medfed.privacy._secagg import (
    DeliveredShares,
    ForwardedKeys,
    Keys,
    Members,
    SealedShares,
    Settings,
    Shares,
    UnmaskRequest,
    agreed_key,
    checked_keys,
    derived,
    holders,
    neighbours,
    pair,
    parse,
    required_sites,
    to_bytes,
)
from medfed.privacy._shamir import SHARE_BYTES, split
from medfed.wire.messages import Message, SiteChannel
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights

# The group and name under which a masked update carries the site's masked number of examples.
GROUP, EXAMPLES = "secure_sum", "examples"


def protectors(settings: Settings, channel: SiteChannel) -> Iterator[SiteSum]:
    """Yield one protector for each attempt of the round in which this site takes part.

    Raises:
        PrivacyError: if the hub or a site violates the protocol; nothing more is sent then.
    """
    if not channel.signed:
        raise PrivacyError(
            f"site '{channel.site}': privacy.kind: secure_sum needs messages with signatures, else whoever "
            "carries them can speak as every other site and take the masks off; set exchange.credentials "
            "(`medfed enrol` makes them)"
        )
    attempt = 0
    while (called := channel.receive({"call": attempt + 1})) is not None:
        attempt = called.attempt
        mine = channel.sent("keys")
        if mine is not None and mine.attempt >= attempt:
            # This process was restarted: the masks' seeds are lost, and a second masked update must
            # not follow a first. The site drops out of the attempt, and the others' shares of its key
            # allow for that.
            channel.audit.write("left out", site=channel.site, round=channel.round, attempt=attempt)
            continue
        with _written_down(channel):
            agreed = _agree(settings, channel, attempt)
        if agreed is not None:
            yield agreed
            with _written_down(channel):
                agreed.conclude()


@contextmanager
def _written_down(channel: SiteChannel) -> Iterator[None]:
    """Log in the audit log why this site stops answering the hub."""
    try:
        yield
    except PrivacyError as error:
        channel.audit.write("hub refused", site=channel.site, round=channel.round, reason=str(error))
        raise


@dataclass(frozen=True)
class SiteSum:
    """One attempt at a site, after the keys and shares of all sites have arrived."""

    settings: Settings
    channel: SiteChannel
    attempt: int
    seed: bytes
    mask_key: X25519PrivateKey
    keys: Mapping[str, Keys]  # of all sites that sent keys
    members: Sequence[str]  # the sites that distributed shares
    others: Sequence[str]  # this site's neighbours among them
    shares: Mapping[str, tuple[bytes, bytes]]  # by owner: of its mask key and of its seed

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return the update with every number masked; only the sum with the others' reveals anything.

        Raises:
            PrivacyError: if a number is too large for the fixed point.
        """
        settings, site = self.settings, self.channel.site
        if not 1 <= update.examples <= settings.most_examples:
            raise PrivacyError(
                f"site '{site}' trains on {update.examples} examples; secure_sum takes 1 to "
                f"{settings.most_examples} (privacy.most_examples), which every site must know before"
            )
        point = settings.fixed_point(len(self.members))
        scratch, streams = Scratch(), self._streams()
        examples = torch.tensor([update.examples], dtype=torch.float64)
        count, _ = masked(examples, settings.whole_numbers(len(self.members)), 1.0, streams, scratch)
        factor = update.examples / settings.most_examples
        delta: dict[str, Tensor] = {}
        for name in sorted(weights):
            whole, largest = masked(_terms(update, name), point, factor, streams, scratch)
            self._bounded(name, largest)
            delta[name] = _as_tensor(whole, point).reshape(weights[name].shape)
        return replace(
            update,
            delta=delta,
            examples=0,
            groups={GROUP: {EXAMPLES: _as_tensor(count, point)}},
        )

    def _bounded(self, name: str, largest: float) -> None:
        limit = self.settings.limit
        if not largest <= limit:
            raise PrivacyError(
                f"site '{self.channel.site}', round {self.channel.round}: '{name}' changes by up to "
                f"{largest:.3g}, secure_sum adds changes of at most {limit:g}; set privacy.limit higher, or "
                "bits: 64 where it is not, or a lower learning rate"
            )

    def _streams(self) -> list[Stream]:
        site = self.channel.site
        streams = [Stream(derived(self.seed, "own mask"), 1)]
        for other in self.others:
            key = agreed_key(self.mask_key, self.keys[other].mask, f"mask {pair(site, other)}")
            streams.append(Stream(key, 1 if site < other else -1))
        return streams

    def conclude(self) -> None:
        """Sign the list of sites in the sum, check the others' signatures, and send unmasking shares."""
        listed = _next(self.channel, self.attempt, "members")
        if listed is None:
            return
        sites = parse(listed.data, Members, "hub", "members").sites
        if self.channel.site not in sites:
            self.channel.audit.write(
                "left out", site=self.channel.site, round=self.channel.round, attempt=self.attempt
            )
            return
        self._check_list(sites)
        self.channel.send(self.attempt, "signed", to_bytes(Members(sites)))
        asked = _next(self.channel, self.attempt, "signed")
        if asked is None:
            return
        request = parse(asked.data, UnmaskRequest, "hub", "signed")
        self._check_request(request, sites)
        self.channel.send(self.attempt, "unmask", to_bytes(self._unmasking(sites)))

    def _check_list(self, sites: Sequence[str]) -> None:
        who = f"site '{self.channel.site}', round {self.channel.round}"
        if sorted(set(sites)) != list(sites) or not set(sites) <= set(self.members):
            raise PrivacyError(
                f"{who}: the hub's list of who is in the sum names a site twice, or one that sent no "
                "shares; nothing is unmasked"
            )
        self.settings.require(who, "are in the sum", len(sites), len(self.keys))
        before = self.channel.sent("signed")
        if before is not None and parse(before.data, Members, self.channel.site, "signed").sites != list(
            sites
        ):
            raise PrivacyError(
                f"{who}: the hub asks for a second sum of this round over other sites. The difference of two "
                "sums is a single site's update, so only one list per round is signed; let the same sites "
                "take part again, or start a new run"
            )

    def _check_request(self, request: UnmaskRequest, sites: Sequence[str]) -> None:
        who = f"site '{self.channel.site}', round {self.channel.round}"
        dropped = sorted(set(self.members) - set(sites))
        if both := sorted(set(request.seeds_of) & set(request.keys_of)):
            raise PrivacyError(
                f"{who}: the hub asks for shares of both kinds of site '{both[0]}', which would take the "
                "mask off its own update; nothing is given"
            )
        if request.seeds_of != list(sites) or request.keys_of != dropped:
            raise PrivacyError(
                f"{who}: the hub asks for shares of other sites than the list that this "
                "site signed; nothing is given"
            )
        for party, sealed in request.messages.items():
            message = self._opened(party, sealed, "signed")
            if party not in sites or parse(message.data, Members, party, "signed").sites != list(sites):
                raise PrivacyError(
                    f"{who}: site '{party}' signed another list of who is in the sum than this site: the hub "
                    "told them different ones; nothing is given"
                )
        self.settings.require(who, "signed the list", len(request.messages), len(self.keys))

    def _opened(self, party: str, sealed: bytes, step: str) -> Message:
        return _opened(self.channel, party, sealed, step, self.attempt)

    def _unmasking(self, sites: Sequence[str]) -> Shares:
        seeds, keys = {}, {}
        for owner, (key_share, seed_share) in self.shares.items():
            # One kind of share per site: with both, the hub could compute the site's own update.
            if owner in sites:
                seeds[owner] = seed_share
            else:
                keys[owner] = key_share
        return Shares(seeds, keys)


# -------------------------------------------------------------------------------------------- keys and shares


@dataclass(frozen=True)
class _Secrets:
    """A site's secrets for one attempt."""

    box_key: X25519PrivateKey
    mask_key: X25519PrivateKey
    seed: bytes

    @property
    def public(self) -> Keys:
        return Keys(
            self.box_key.public_key().public_bytes_raw(),
            self.mask_key.public_key().public_bytes_raw(),
            hashlib.sha256(self.seed).digest(),
        )

    def split(self, holding: Sequence[str], min_shares: int) -> dict[str, tuple[bytes, bytes]]:
        """Return by holder its shares of the mask key and of the seed."""
        key_shares = split(self.mask_key.private_bytes_raw(), len(holding), min_shares)
        seed_shares = split(self.seed, len(holding), min_shares)
        return dict(zip(holding, zip(key_shares, seed_shares, strict=True), strict=True))


def _agree(settings: Settings, channel: SiteChannel, attempt: int) -> SiteSum | None:
    """Exchange keys and shares with the other sites; return None if the attempt ended meanwhile."""
    channel.retract()
    own = _Secrets(X25519PrivateKey.generate(), X25519PrivateKey.generate(), secrets.token_bytes(32))
    keys = _exchange_keys(settings, channel, attempt, own)
    if keys is None:
        return None
    around = neighbours(keys, settings.neighbours)[channel.site]
    holding = holders(channel.site, around)
    min_shares = required_sites(settings.threshold, len(holding))
    shares = own.split(holding, min_shares)
    boxes = {
        other: _cipher(own.box_key, keys, channel, attempt, channel.site, other).encrypt(
            bytes(12), b"".join(shares[other]), None
        )
        for other in around
    }
    channel.send(attempt, "shares", to_bytes(SealedShares(boxes)))
    answer = _next(channel, attempt, "shares")
    if answer is None:
        return None
    delivered = parse(answer.data, DeliveredShares, "hub", "shares")
    if channel.site not in delivered.members:
        channel.audit.write("left out", site=channel.site, round=channel.round, attempt=attempt)
        return None
    others = [other for other in around if other in delivered.members]
    _check_members(settings, channel, keys, delivered, others, min_shares)
    own_shares = {channel.site: shares[channel.site]}
    shares = own_shares | _open_shares(channel, attempt, own, keys, {o: delivered.boxes[o] for o in others})
    return SiteSum(
        settings, channel, attempt, own.seed, own.mask_key, keys, delivered.members, others, shares
    )


def _exchange_keys(
    settings: Settings, channel: SiteChannel, attempt: int, own: _Secrets
) -> Mapping[str, Keys] | None:
    """Return the public keys of all sites, with this site's own among them."""
    who = f"site '{channel.site}', round {channel.round}"
    channel.send(attempt, "keys", to_bytes(own.public))
    answer = _next(channel, attempt, "keys")
    if answer is None:
        return None
    keys = checked_keys(
        {
            party: parse(_opened(channel, party, sealed, "keys", attempt).data, Keys, party, "keys")
            for party, sealed in parse(answer.data, ForwardedKeys, "hub", "keys").messages.items()
        }
    )
    if keys.get(channel.site) != own.public:
        raise PrivacyError(f"{who}: the hub's list of keys lacks this site's own; nothing is sent")
    settings.require(who, "showed keys", len(keys), len(keys))
    return keys


def _check_members(
    settings: Settings,
    channel: SiteChannel,
    keys: Mapping[str, Keys],
    delivered: DeliveredShares,
    others: Sequence[str],
    min_shares: int,
) -> None:
    """Check the hub's list of the sites that distributed shares, of which `others` are neighbours.

    Raises:
        PrivacyError: if it contradicts itself, or is too short to unmask the sum.
    """
    who = f"site '{channel.site}', round {channel.round}"
    members = delivered.members
    if sorted(set(members)) != members or not set(members) <= set(keys) or sorted(delivered.boxes) != others:
        raise PrivacyError(
            f"{who}: the hub's list of sites that sent shares contradicts itself; nothing is sent"
        )
    settings.require(who, "sent shares", len(members), len(keys))
    if len(others) + 1 < min_shares:
        raise PrivacyError(
            f"{who}: {len(others)} of its neighbours are left, {min_shares - 1} are needed "
            "to unmask; nothing is sent"
        )


def _open_shares(
    channel: SiteChannel, attempt: int, own: _Secrets, keys: Mapping[str, Keys], boxes: Mapping[str, bytes]
) -> dict[str, tuple[bytes, bytes]]:
    """Return the decrypted shares by the neighbour that distributed them; failures are logged."""
    shares = {}
    for other, box in boxes.items():
        opened = _open_box(_cipher(own.box_key, keys, channel, attempt, other, channel.site), box)
        if opened is None:
            # The hub or the sender corrupted it. The sum tolerates some missing shares, and fails with
            # a message otherwise.
            channel.audit.write(
                "message refused", site=other, round=channel.round, step="shares", reason="no such key"
            )
        else:
            shares[other] = opened
    return shares


def _cipher(
    own: X25519PrivateKey,
    keys: Mapping[str, Keys],
    channel: SiteChannel,
    attempt: int,
    sender: str,
    receiver: str,
) -> AESGCM:
    # Each key encrypts a single message, so its nonce may be zero.
    other = receiver if sender == channel.site else sender
    purpose = f"box {channel.round}/{attempt} {sender} to {receiver}"
    return AESGCM(agreed_key(own, keys[other].box, purpose))


def _open_box(cipher: AESGCM, box: bytes) -> tuple[bytes, bytes] | None:
    try:
        opened = cipher.decrypt(bytes(12), box, None)
    except InvalidTag:
        return None
    return (opened[:SHARE_BYTES], opened[SHARE_BYTES:]) if len(opened) == 2 * SHARE_BYTES else None


def _opened(channel: SiteChannel, party: str, sealed: bytes, step: str, attempt: int) -> Message:
    """Return a site's message that the hub forwarded.

    Raises:
        PrivacyError: if that site did not write it, or wrote it in another step.
    """
    who = f"site '{channel.site}', round {channel.round}"
    try:
        message = channel.open(sealed, party)
    except WireError as error:
        raise PrivacyError(
            f"{who}: the hub forwards a message in the name of '{party}' that is not from it: {error}; "
            "nothing more is sent"
        ) from None
    if (message.step, message.when) != (step, (channel.round, attempt)):
        raise PrivacyError(
            f"{who}: the hub forwards a message of '{party}' of round {message.round}, attempt "
            f"{message.attempt}, step '{message.step[:20]}', expected round {channel.round}, attempt "
            f"{attempt}, '{step}': a copy of an older one"
        )
    return message


def _next(channel: SiteChannel, attempt: int, step: str) -> Message | None:
    """Return the hub's message of this step and attempt, or None if the attempt or the round is over."""
    message = channel.receive({step: attempt, "call": attempt + 1})
    return message if message is not None and (message.step, message.attempt) == (step, attempt) else None


def _terms(update: Update, name: str) -> Tensor | tuple[Tensor, Tensor]:
    delta = update.delta
    return (delta.minuend[name], delta.subtrahend[name]) if isinstance(delta, Difference) else delta[name]


def _as_tensor(whole: np.ndarray, point: FixedPoint) -> Tensor:
    return torch.from_numpy(whole.view(np.int32 if point.bits == 32 else np.int64))
