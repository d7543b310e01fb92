"""A secure sum at a site: its keys, its update's masks, and the shares that unmask the sum."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from medfed.errors import PrivacyError
from medfed.privacy import _key_exchange as key_exchange
from medfed.privacy import _secagg as secagg
from medfed.privacy._key_exchange import C, Content, EncryptedBySite, RelayedMessages
from medfed.privacy._masks import Scratch, Stream, masked
from medfed.privacy._secagg import Keys, Members, SignedMembers
from medfed.privacy._shamir import SHARE_BYTES, split
from medfed.wire.messages import SiteChannel
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights


def protectors(settings: secagg.Settings, channel: SiteChannel) -> Iterator[SiteSum]:
    """Yield one protector for each attempt of the round in which this site takes part.

    Raises:
        PrivacyError: if the hub or a site violates the protocol; nothing more is sent then.
    """
    key_exchange.require_signatures(channel, "secure_sum", "speak as every other site and take the masks off")
    number = 0
    while (called := channel.receive({"call": number + 1})) is not None:
        number = called.attempt
        attempt = _Attempt(settings, channel, number)
        mine = channel.sent("keys")
        if mine is not None and mine.attempt >= number:
            # This process was restarted: the masks' seeds are lost, and a second masked update must
            # not follow a first. The site drops out of the attempt, and the others' shares of its key
            # allow for that.
            attempt.log("left out", attempt=number)
            continue
        with channel.logged_refusals():
            agreed = _agree(attempt)
        if agreed is not None:
            yield agreed
            with channel.logged_refusals():
                agreed.conclude()


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a round's secure sum, as a site takes part in it."""

    settings: secagg.Settings
    channel: SiteChannel
    number: int

    @property
    def site(self) -> str:
        """The name of this site."""
        return self.channel.site

    @property
    def who(self) -> str:
        """How errors name this site and round."""
        return self.channel.who

    def send(self, step: str, content: Content) -> None:
        """Send a message of this attempt to the hub."""
        self.channel.send(self.number, step, key_exchange.to_bytes(content))

    def receive(self, step: str, kind: type[C]) -> C | None:
        """Return the hub's message for a step, or None if the attempt or the round is over."""
        message = self.channel.receive({step: self.number, "call": self.number + 1})
        if message is None or (message.step, message.attempt) != (step, self.number):
            return None
        return key_exchange.parse(message.data, kind, "hub", step)

    def open(self, sealed: bytes, kind: type[C], party: str, step: str) -> C:
        """Return the content of a site's message of this attempt that the hub forwarded."""
        return key_exchange.open_relayed(self.channel, sealed, kind, party, step, self.number)

    def require(self, did: str, count: int, of: int) -> None:
        """Check that enough sites remain of those that began."""
        self.settings.require(self.who, did, count, of)

    def log(self, event: str, **fields: object) -> None:
        """Write an event of this round to the audit log."""
        self.channel.audit.write(event, **{"site": self.site, "round": self.channel.round, **fields})


@dataclass(frozen=True)
class SiteSum:
    """One attempt at a site, after the keys and shares of all sites have arrived."""

    attempt: _Attempt
    own: _Secrets
    keys: Mapping[str, Keys]  # of all sites that sent keys
    members: Sequence[str]  # the sites that distributed shares
    others: Sequence[str]  # this site's neighbours among them
    shares: Mapping[str, tuple[bytes, bytes]]  # by owner: of its mask key and of its seed

    @property
    def _view(self) -> bytes:
        """The digest of what the hub showed this site, which all sites of a sum must have seen alike."""
        return secagg.view(self.keys, self.members)

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return the update with every number masked; only the sum with the others' reveals anything.

        Raises:
            PrivacyError: if a number is too large for the fixed point.
        """
        settings = self.attempt.settings
        if not 1 <= update.examples <= settings.max_examples:
            raise PrivacyError(
                f"site '{self.attempt.site}' trains on {update.examples} examples; secure_sum takes 1 to "
                f"{settings.max_examples} (privacy.max_examples), which every site must know before"
            )
        point = settings.fixed_point(len(self.members))
        scratch, streams = Scratch(), self._streams()
        examples = torch.tensor([update.examples], dtype=torch.float64)
        count, _ = masked(examples, settings.whole_numbers(len(self.members)), 1.0, streams, scratch)
        factor = update.examples / settings.max_examples
        delta: dict[str, Tensor] = {}
        for name in sorted(weights):
            whole, largest = masked(_terms(update, name), point, factor, streams, scratch)
            self._check_size(name, largest)
            delta[name] = whole.reshape(weights[name].shape)
        groups = {secagg.GROUP: {secagg.EXAMPLES: count}}
        return replace(update, delta=delta, examples=0, groups=groups)

    def _check_size(self, name: str, largest: float) -> None:
        limit = self.attempt.settings.limit
        if not largest <= limit:
            raise PrivacyError(
                f"{self.attempt.who}: '{name}' changes by up to {largest:.3g}, secure_sum adds changes of at "
                f"most {limit:g}; set privacy.limit higher, or bits: 64 where it is not, or a lower learning "
                "rate"
            )

    def _streams(self) -> list[Stream]:
        site = self.attempt.site
        streams = [Stream(secagg.own_mask(self.own.seed), 1)]
        for other in self.others:
            key = secagg.pair_mask(self.own.mask_key, self.keys[other], site, other)
            streams.append(Stream(key, 1 if site < other else -1))
        return streams

    def conclude(self) -> None:
        """Sign the list of sites in the sum, check the others' signatures, and send unmasking shares."""
        attempt = self.attempt
        listed = attempt.receive("members", Members)
        if listed is None:
            return
        self._check_list(listed.sites)
        if attempt.site not in listed.sites:
            attempt.log("left out", attempt=attempt.number)
            return
        self._require_one_list(listed.sites)
        signed = SignedMembers(listed.sites, self._view)
        attempt.send("signed", signed)
        request = attempt.receive("signed", secagg.UnmaskRequest)
        if request is not None:
            self._check_request(request, signed)
            attempt.send("unmask", self._unmasking(listed.sites))

    def _check_list(self, sites: list[str]) -> None:
        attempt = self.attempt
        if sorted(set(sites)) != sites or not set(sites) <= set(self.members):
            raise PrivacyError(
                f"{attempt.who}: the hub's list of who is in the sum names a site twice, or one that sent no "
                "shares; nothing is unmasked"
            )
        attempt.require("are in the sum", len(sites), len(self.keys))

    def _require_one_list(self, sites: list[str]) -> None:
        """Check that this site has signed no other list of this round, in any attempt."""
        attempt = self.attempt
        before = attempt.channel.sent("signed")
        if before is None:
            return
        if key_exchange.parse(before.data, SignedMembers, attempt.site, "signed").sites != sites:
            raise PrivacyError(
                f"{attempt.who}: the hub asks for a second sum of this round over other sites. The "
                "difference of two sums is a single site's update, so only one list per round is signed; let "
                "the same sites take part again, or start a new run"
            )

    def _check_request(self, request: secagg.UnmaskRequest, listed: SignedMembers) -> None:
        who, sites = self.attempt.who, listed.sites
        if both := sorted(set(request.seeds_of) & set(request.keys_of)):
            raise PrivacyError(
                f"{who}: the hub asks for shares of both kinds of site '{both[0]}', which would take the "
                "mask off its own update; nothing is given"
            )
        if request.seeds_of != sites or request.keys_of != sorted(set(self.members) - set(sites)):
            raise PrivacyError(
                f"{who}: the hub asks for shares of other sites than the list that this "
                "site signed; nothing is given"
            )
        for party, sealed in request.messages.items():
            signed = self.attempt.open(sealed, SignedMembers, party, "signed")
            if party not in sites or signed.sites != listed.sites:
                raise PrivacyError(
                    f"{who}: site '{party}' signed another list of who is in the sum than this site: the hub "
                    "sent them different ones; nothing is given"
                )
            if signed.view != listed.view:
                raise PrivacyError(
                    f"{who}: site '{party}' was shown other keys, or other senders of shares, than this "
                    "site: the hub sent them different ones; nothing is given"
                )
        self.attempt.require("signed the list", len(request.messages), len(self.keys))

    def _unmasking(self, sites: Sequence[str]) -> secagg.Shares:
        # One kind of share per site: with both, the hub could compute the site's own update.
        return secagg.Shares(
            seeds={owner: seed for owner, (_, seed) in self.shares.items() if owner in sites},
            keys={owner: key for owner, (key, _) in self.shares.items() if owner not in sites},
        )


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


def _agree(attempt: _Attempt) -> SiteSum | None:
    """Exchange keys and shares with the other sites; return None if the attempt ended meanwhile."""
    site, settings = attempt.site, attempt.settings
    attempt.channel.retract()
    own = _Secrets(X25519PrivateKey.generate(), X25519PrivateKey.generate(), secrets.token_bytes(32))
    keys = _exchange_keys(attempt, own)
    if keys is None:
        return None
    around = secagg.neighbours(keys, settings.neighbours)[site]
    holding = secagg.holders(site, around)
    min_shares = settings.required_shares(len(keys))
    shares = own.split(holding, min_shares)
    shown = secagg.view(keys, ())
    encrypted = {
        other: _cipher(attempt, own, keys[other], site, other).encrypt(
            bytes(12), b"".join(shares[other]), shown
        )
        for other in around
    }
    attempt.send("shares", EncryptedBySite(encrypted))
    delivered = attempt.receive("shares", secagg.DeliveredShares)
    if delivered is None:
        return None
    _check_members(attempt, keys, delivered)
    if site not in delivered.members:
        attempt.log("left out", attempt=attempt.number)
        return None
    others = [other for other in around if other in delivered.members]
    _check_delivered(attempt, delivered, others, min_shares)
    opened = _open_shares(attempt, own, keys, {other: delivered.by_site[other] for other in others})
    _require_same_keys(attempt, opened, others)
    return SiteSum(attempt, own, keys, delivered.members, others, {site: shares[site], **opened})


def _exchange_keys(attempt: _Attempt, own: _Secrets) -> Mapping[str, Keys] | None:
    """Return the public keys of all sites, with this site's own among them."""
    attempt.send("keys", own.public)
    relayed = attempt.receive("keys", RelayedMessages)
    if relayed is None:
        return None
    keys = key_exchange.party_keys(attempt.channel, relayed, own.public, "keys", attempt.number)
    secagg.check_sum_keys(keys)
    attempt.require("showed keys", len(keys), len(keys))
    return keys


def _check_members(attempt: _Attempt, keys: Mapping[str, Keys], delivered: secagg.DeliveredShares) -> None:
    """Check the hub's list of the sites that distributed shares, whether or not this site is on it.

    Raises:
        PrivacyError: if it contradicts itself, or is too short for a sum.
    """
    members = delivered.members
    if sorted(set(members)) != members or not set(members) <= set(keys):
        raise PrivacyError(_contradiction(attempt))
    attempt.require("sent shares", len(members), len(keys))


def _check_delivered(
    attempt: _Attempt, delivered: secagg.DeliveredShares, others: Sequence[str], min_shares: int
) -> None:
    """Check that shares came from this site's neighbours on the list, `others`, and from enough to unmask.

    Raises:
        PrivacyError: if not.
    """
    if sorted(delivered.by_site) != others:
        raise PrivacyError(_contradiction(attempt))
    if len(others) + 1 < min_shares:
        raise PrivacyError(
            f"{attempt.who}: {len(others)} of its neighbours remain, {min_shares - 1} are needed "
            "to unmask; nothing is sent"
        )


def _contradiction(attempt: _Attempt) -> str:
    return f"{attempt.who}: the hub's list of sites that sent shares contradicts itself; nothing is sent"


def _require_same_keys(attempt: _Attempt, opened: Collection[str], others: Sequence[str]) -> None:
    """Check that some honest site answered this site's own keys, and was shown the same ones of all.

    Shares open only with keys that both sites were shown now. Keys of an earlier run under the same number
    are signed as these are, but nobody can answer them.

    Raises:
        PrivacyError: if the shares that open are so few that they may all be of colluding sites.
    """
    if len(opened) <= attempt.settings.colluding:
        closed = ", ".join(other for other in others if other not in opened)
        raise PrivacyError(
            f"{attempt.who}: the shares of {closed} do not open: the hub showed these sites other keys than "
            "this one, or this one keys of an earlier run; nothing is sent"
        )


def _open_shares(
    attempt: _Attempt, own: _Secrets, keys: Mapping[str, Keys], encrypted: Mapping[str, bytes]
) -> dict[str, tuple[bytes, bytes]]:
    """Return the decrypted shares by the neighbour that distributed them; failures are logged."""
    shares, shown = {}, secagg.view(keys, ())
    for other, box in encrypted.items():
        opened = _open_box(_cipher(attempt, own, keys[other], other, attempt.site), box, shown)
        if opened is None:
            # The hub or the sender corrupted it. The sum tolerates some missing shares, and fails with
            # a message otherwise.
            attempt.log("message refused", site=other, step="shares", reason="no such key")
        else:
            shares[other] = opened
    return shares


def _cipher(attempt: _Attempt, own: _Secrets, theirs: Keys, sender: str, receiver: str) -> AESGCM:
    # Each key encrypts a single message, so its nonce may be zero.
    purpose = f"secure sum box {attempt.channel.round}/{attempt.number} {sender} to {receiver}"
    return AESGCM(key_exchange.agreed_key(own.box_key, theirs.box, purpose))


def _open_box(cipher: AESGCM, box: bytes, shown: bytes) -> tuple[bytes, bytes] | None:
    try:
        opened = cipher.decrypt(bytes(12), box, shown)
    except InvalidTag:
        return None
    return (opened[:SHARE_BYTES], opened[SHARE_BYTES:]) if len(opened) == 2 * SHARE_BYTES else None


def _terms(update: Update, name: str) -> Tensor | tuple[Tensor, Tensor]:
    delta = update.delta
    return (delta.minuend[name], delta.subtrahend[name]) if isinstance(delta, Difference) else delta[name]
