"""A secure sum at the hub: it forwards messages, adds masked updates, and unmasks their sum with shares.

After a restart the hub repeats what it sent in each step, because its own messages are stored.
Only if a round cannot be finished does it restart the round's key exchange as the next attempt,
with new keys and masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, islice

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.errors import MedfedError, PrivacyError, QuorumError, UpdateError
from medfed.privacy import _secagg as secagg
from medfed.privacy._key_exchange import C, Content, EncryptedBySite, RelayedMessages, parse, to_bytes
from medfed.privacy._masks import FixedPoint, MaskedSum, Scratch, Stream, unmasked
from medfed.privacy._secagg import EXAMPLES, GROUP, Keys, Members
from medfed.privacy._shamir import SHARE_BYTES, fits, join
from medfed.wire.messages import HubChannel, unverified_data
from medfed.wire.update import Update, check_scalars
from medfed.wire.weights import Weights

# How many combinations of shares are tried if some are wrong, before the round is given up.
MAX_CHOICES = 500


def open_session(settings: secagg.Settings, channel: HubChannel, deadline_s: float | None) -> HubSum:
    """Return the session of this round, after the sites have sent keys and distributed shares.

    Raises:
        QuorumError: if too few sites did.
    """
    attempt = HubAttempt(settings, channel, _next_attempt(channel))
    channel.send(attempt.number, "call", dict.fromkeys(channel.sites, b""))
    keys = _exchange_keys(attempt, deadline_s)
    return HubSum(attempt, keys, _deliver_shares(attempt, keys))


def _next_attempt(channel: HubChannel) -> int:
    called = channel.sent("call")
    if called is None:
        return 1
    listed = channel.sent("members")
    # A published list of members is final, and the sites' messages are still stored. Before that, nothing
    # is lost by restarting with the sites that are present now.
    return called[0] if listed is not None and listed[0] == called[0] else called[0] + 1


@dataclass(frozen=True)
class HubAttempt:
    """One attempt at a round's secure sum: its messages, and the sites that were refused."""

    settings: secagg.Settings
    channel: HubChannel
    number: int
    refused: dict[str, MedfedError] = field(default_factory=dict)

    def sent(self, step: str) -> Mapping[str, bytes] | None:
        """Return what the hub has already sent for a step of this attempt."""
        sent = self.channel.sent(step)
        return sent[1] if sent is not None and sent[0] == self.number else None

    def send(self, step: str, contents: Mapping[str, Content]) -> Mapping[str, bytes]:
        """Send messages to sites, and return the valid ones: these, or those sent before."""
        messages = {site: to_bytes(content) for site, content in contents.items()}
        return self.channel.send(self.number, step, messages)

    def gather(
        self,
        step: str,
        kind: type[C],
        sites: Sequence[str],
        deadline_s: float | None,
        take: Callable[[str, C, bytes], bool | None],
    ) -> None:
        """Pass each site's message of a step, also as it was sealed, to `take` until that has enough.

        A site whose message does not fit is refused.
        """
        for received in self.channel.collect(self.number, step, sites, deadline_s):
            if received.message is None:
                assert received.error is not None
                self.refused[received.site] = received.error
                continue
            try:
                content = parse(received.message.data, kind, received.site, step)
                if take(received.site, content, received.sealed):
                    return
            except MedfedError as error:
                self.channel.log_refusal(received.site, step, error)
                self.refused[received.site] = error

    def require(self, did: str, count: int, of: int) -> None:
        """Check that enough sites remain of those that began.

        Raises:
            QuorumError: if not.
        """
        fewest = self.settings.required(of)
        if count < fewest:
            raise self.too_few(
                f"{count} of {len(self.channel.sites)} sites {did}, {fewest} are needed for a secure sum "
                "(privacy.threshold, privacy.min_sites)"
            )

    def too_few(self, what: str, then: str = "") -> QuorumError:
        """Return the error that the round cannot go on, with why sites were refused."""
        refusals = "".join(f"{site}: {error}. " for site, error in sorted(self.refused.items()))
        return QuorumError(
            f"round {self.channel.round}: {what}. {refusals}Start the sites that stopped and continue with "
            f"--resume{then}"
        )


def _exchange_keys(attempt: HubAttempt, deadline_s: float | None) -> Mapping[str, Keys]:
    """Collect the sites' keys, send all of them to each site, and return them."""
    sent = attempt.sent("keys")
    if sent is not None:
        relayed = parse(next(iter(sent.values())), RelayedMessages, "hub", "keys").messages
        return {site: parse(unverified_data(sealed), Keys, site, "keys") for site, sealed in relayed.items()}
    keys: dict[str, Keys] = {}
    sealed_keys: dict[str, bytes] = {}

    def take(site: str, own_keys: Keys, sealed: bytes) -> None:
        secagg.check_sum_keys({site: own_keys}, keys)
        keys[site], sealed_keys[site] = own_keys, sealed

    attempt.gather("keys", Keys, attempt.channel.sites, deadline_s, take)
    attempt.require("showed keys", len(keys), len(keys))
    attempt.send("keys", dict.fromkeys(sorted(keys), RelayedMessages(sealed_keys)))
    return keys


def _deliver_shares(attempt: HubAttempt, keys: Mapping[str, Keys]) -> Sequence[str]:
    """Collect the sites' encrypted shares, deliver them, and return the sites that sent any."""
    sent = attempt.sent("shares")
    if sent is not None:
        return sorted(sent)
    around = secagg.neighbours(keys, attempt.settings.neighbours)
    encrypted: dict[str, dict[str, bytes]] = {}

    def take(site: str, shares: EncryptedBySite, sealed: bytes) -> None:
        if sorted(shares.by_site) != around[site]:
            raise PrivacyError(f"site '{site}' sent shares to sites that are not its neighbours")
        encrypted[site] = shares.by_site

    attempt.gather("shares", EncryptedBySite, sorted(keys), attempt.settings.patience_s, take)
    members = sorted(encrypted)
    attempt.require("sent shares", len(members), len(keys))
    delivered = {
        site: secagg.DeliveredShares(members, {o: encrypted[o][site] for o in around[site] if o in encrypted})
        for site in members
    }
    attempt.send("shares", delivered)
    return members


@dataclass(frozen=True)
class HubSum:
    """One attempt at a round, from the masked updates to their sum."""

    attempt: HubAttempt
    keys: Mapping[str, Keys]
    sites: Sequence[str]
    total: MaskedSum = field(default_factory=MaskedSum)
    total_examples: MaskedSum = field(default_factory=MaskedSum)

    @property
    def refused(self) -> Mapping[str, MedfedError]:
        return self.attempt.refused

    @property
    def deadline_s(self) -> float | None:
        return self.attempt.settings.patience_s

    @property
    def _neighbours(self) -> Mapping[str, list[str]]:
        return secagg.neighbours(self.keys, self.attempt.settings.neighbours)

    @property
    def _point(self) -> FixedPoint:
        return self.attempt.settings.fixed_point(len(self.sites))

    def admit(self, update: Update, weights: Weights) -> Update:
        """Check a masked update and add it to the sum; what is returned no longer holds its numbers.

        So the hub needs memory for one update and the sum, whatever the number of sites.
        """
        self._check(update, weights)
        # A list that was sent before a restart is final; an update that came since then is not in the sum.
        listed = self.attempt.sent("members")
        if listed is None or update.site in listed:
            self.total.add(update.site, update.delta)
            self.total_examples.add(update.site, update.groups[GROUP])
        return replace(update, delta={}, groups={})

    def _check(self, update: Update, weights: Weights) -> None:
        dtype = self._point.dtype
        if set(update.delta) != set(weights):
            odd = sorted(set(update.delta) ^ set(weights))[0]
            raise UpdateError(f"{update}: '{odd[:80]}' is not in both the update and the global model")
        for name, tensor in update.delta.items():
            if tensor.dtype != dtype or tensor.shape != weights[name].shape:
                raise UpdateError(
                    f"{update}: '{name}' is {tensor.dtype} of shape {tuple(tensor.shape)}, expected masked "
                    f"numbers: {dtype} of shape {tuple(weights[name].shape)}"
                )
        count = update.groups.get(GROUP, {}).get(EXAMPLES)
        if set(update.groups) != {GROUP} or count is None or count.dtype != dtype or count.numel() != 1:
            raise UpdateError(
                f"{update}: its masked number of examples is missing, or is not all that it holds"
            )
        if update.examples != 0:
            raise UpdateError(f"{update}: it states its {update.examples} examples, which a secure sum hides")
        check_scalars(update)

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return one update with the mean of the sites' changes and the sum of their examples.

        Raises:
            QuorumError: if too few sites are in the sum, or too few sent shares to unmask it.
            PrivacyError: if the masks do not cancel.
        """
        attempt = self.attempt
        sent = sorted(update.site for update in updates)
        attempt.require("sent a masked update", len(sent), len(self.keys))
        sites = sorted(attempt.send("members", dict.fromkeys(sent, Members(sent))))
        try:
            if missing := sorted(set(sites) ^ set(self.total.sites)):
                raise QuorumError(
                    f"round {attempt.channel.round}: the sum was to be over {', '.join(sites)}, and the "
                    f"update of '{missing[0]}' is no longer there or came too late; continue with --resume, "
                    "which repeats the round"
                )
            seeds, keys = self._unmasking(sites)
            return [self._sum(sites, seeds, keys, weights)]
        except (PrivacyError, QuorumError):
            attempt.channel.send(attempt.number + 1, "call", dict.fromkeys(attempt.channel.sites, b""))
            raise

    # -- shares

    def _unmasking(self, sites: list[str]) -> tuple[dict[str, bytes], dict[str, X25519PrivateKey]]:
        """Return the seeds of the sites in the sum and the mask keys of those that dropped out."""
        attempt = self.attempt
        dropped = sorted(set(self.sites) - set(sites))
        request = secagg.UnmaskRequest(self._signed(sites), sites, dropped)
        attempt.send("signed", dict.fromkeys(sites, request))
        received: dict[str, Mapping[str, bytes]] = {}
        secrets: dict[str, bytes] = {}

        def take(holder: str, shares: secagg.Shares, sealed: bytes) -> bool:
            received[holder] = _checked_shares(holder, shares, sites, dropped)
            for site in sites + dropped:
                if site not in secrets:
                    is_right = partial(self._is_seed if site in sites else self._is_key, site)
                    by_holder = {one: theirs[site] for one, theirs in received.items() if site in theirs}
                    secrets.update(self._join(site, by_holder, is_right))
            return len(secrets) == len(sites) + len(dropped)

        attempt.gather("unmask", secagg.Shares, sites, attempt.settings.patience_s, take)
        if lacking := [site for site in sites + dropped if site not in secrets]:
            raise attempt.too_few(
                f"the sum cannot be unmasked: {len(received)} of {len(sites)} sites sent shares, and those "
                f"of site '{lacking[0]}' are too few or don't match its key",
                ", which repeats the round with the same sites",
            )
        keys = {site: X25519PrivateKey.from_private_bytes(secrets[site]) for site in dropped}
        return {site: secrets[site] for site in sites}, keys

    def _signed(self, sites: list[str]) -> dict[str, bytes]:
        """Return the sites' signatures of the list of who is in the sum."""
        signed: dict[str, bytes] = {}
        fewest = self.attempt.settings.required(len(self.keys))

        view = secagg.view(self.keys, self.sites)

        def take(site: str, listed: secagg.SignedMembers, sealed: bytes) -> bool:
            if (listed.sites, listed.view) != (sites, view):
                raise PrivacyError(f"site '{site}' signed another list of who is in the sum, or other keys")
            signed[site] = sealed
            return len(signed) >= fewest

        self.attempt.gather("signed", secagg.SignedMembers, sites, self.attempt.settings.patience_s, take)
        if len(signed) < fewest:
            raise self.attempt.too_few(
                f"{len(signed)} of {len(sites)} sites signed who is in the sum, {fewest} are needed"
            )
        return signed

    def _join(
        self, site: str, shares_by_holder: Mapping[str, bytes], is_right: Callable[[bytes], bool]
    ) -> dict[str, bytes]:
        """Return a site's secret by its name once enough shares have arrived, even if some are wrong."""
        holding = secagg.holders(site, self._neighbours[site])
        numbers = {holder: number for number, holder in enumerate(holding, start=1)}
        shares = {numbers[holder]: share for holder, share in shares_by_holder.items() if holder in numbers}
        at_least = self.attempt.settings.required_shares(len(self.keys))
        for choice in islice(combinations(sorted(shares), at_least), MAX_CHOICES):
            chosen = {number: shares[number] for number in choice}
            try:
                secret = join(chosen)
            except PrivacyError:
                continue
            if is_right(secret):
                self._report_wrong_shares(site, chosen, shares, numbers)
                return {site: secret}
        return {}

    def _report_wrong_shares(
        self, site: str, good: Mapping[int, bytes], shares: Mapping[int, bytes], numbers: Mapping[str, int]
    ) -> None:
        for holder, number in numbers.items():
            if number in shares and not fits(good, number, shares[number]):
                self.attempt.channel.log_refusal(
                    holder, "unmask", PrivacyError(f"its share of site '{site}' is wrong")
                )

    def _is_seed(self, site: str, secret: bytes) -> bool:
        return hashlib.sha256(secret).digest() == self.keys[site].seed

    def _is_key(self, site: str, secret: bytes) -> bool:
        return (
            X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
            == self.keys[site].mask
        )

    # -- the sum

    def _sum(
        self,
        sites: Sequence[str],
        seeds: Mapping[str, bytes],
        keys: Mapping[str, X25519PrivateKey],
        weights: Weights,
    ) -> Update:
        settings, round = self.attempt.settings, self.attempt.channel.round
        scratch, streams = Scratch(), self._streams(seeds, keys)
        masked, whole_numbers = self.total_examples.numbers[EXAMPLES], settings.whole_numbers(len(self.sites))
        examples = int(unmasked(masked, whole_numbers, 1.0, streams, scratch)[0])
        most = settings.max_examples
        if not len(sites) <= examples <= len(sites) * most:
            raise PrivacyError(
                f"round {round}: the masks of {', '.join(seeds)} don't cancel: the sum of their "
                f"examples would be {examples}; one of these sites did not mask as it agreed"
            )
        delta = {
            name: unmasked(self.total.numbers[name], self._point, most / examples, streams, scratch)
            for name in sorted(weights)
        }
        return Update(f"the sum of {', '.join(seeds)}", round, delta, examples)

    def _streams(self, seeds: Mapping[str, bytes], keys: Mapping[str, X25519PrivateKey]) -> list[Stream]:
        neighbours = self._neighbours
        streams = [Stream(secagg.own_mask(seed), -1) for seed in seeds.values()]
        for gone, key in keys.items():
            for site in seeds:
                if site in neighbours[gone]:
                    # The site in the sum added this mask, and the one that is gone did not subtract it.
                    mask = secagg.pair_mask(key, self.keys[site], site, gone)
                    streams.append(Stream(mask, -1 if site < gone else 1))
        return streams


def _checked_shares(
    holder: str, shares: secagg.Shares, sites: Sequence[str], dropped: Sequence[str]
) -> Mapping[str, bytes]:
    """Return a site's unmasking shares by owner: of seeds of sites in the sum, of keys of those that left.

    Raises:
        PrivacyError: if they are not those that were requested, or have the wrong length.
    """
    if not set(shares.seeds) <= set(sites) or not set(shares.keys) <= set(dropped):
        raise PrivacyError(f"site '{holder}' sent shares that nobody requested")
    by_owner = shares.seeds | shares.keys
    if any(len(share) != SHARE_BYTES for share in by_owner.values()):
        raise PrivacyError(f"site '{holder}' sent a share that does not have {SHARE_BYTES} bytes")
    return by_owner
