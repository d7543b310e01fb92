"""A secure sum at the hub: it forwards messages, adds masked updates, and unmasks their sum with shares.

After a restart the hub repeats what it sent in each step, because its own messages are stored.
Only if a round cannot be finished does it restart the round's key exchange as the next attempt,
with new keys and masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.errors import MedfedError, PrivacyError, QuorumError, UpdateError
from medfed.privacy._masks import FixedPoint, Scratch, Stream, summed, unsigned
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
from medfed.privacy._secagg_client import EXAMPLES, GROUP
from medfed.privacy._shamir import SHARE_BYTES, fits, join
from medfed.wire.messages import HubChannel, Message
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# How many combinations of shares are tried if some are wrong, before the round is given up.
MAX_CHOICES = 500


def open_session(settings: Settings, channel: HubChannel, deadline_s: float | None) -> HubSum:
    """Return the session of this round, after the sites have sent keys and distributed shares.

    Raises:
        QuorumError: if too few sites did.
    """
    attempt = _attempt(channel)
    channel.send(attempt, "call", dict.fromkeys(channel.sites, b""))
    refused: dict[str, MedfedError] = {}
    keys = _keys(settings, channel, attempt, deadline_s, refused)
    members = _members(settings, channel, attempt, keys, refused)
    return HubSum(settings, channel, attempt, keys, members, refused)


def _attempt(channel: HubChannel) -> int:
    called = channel.sent("call")
    if called is None:
        return 1
    listed = channel.sent("members")
    # A published list of members is final, and the sites' messages are still there. Before that, nothing is
    # lost by restarting with the sites that are there now.
    return called[0] if listed is not None and listed[0] == called[0] else called[0] + 1


def _keys(
    settings: Settings,
    channel: HubChannel,
    attempt: int,
    deadline_s: float | None,
    refused: dict[str, MedfedError],
) -> Mapping[str, Keys]:
    stands = _already_posted(channel, attempt, "keys")
    if stands is not None:
        handed = parse(next(iter(stands.values())), ForwardedKeys, "hub", "keys")
        return {site: parse(_inside(sealed), Keys, site, "keys") for site, sealed in handed.messages.items()}
    keys: dict[str, Keys] = {}
    sealed: dict[str, bytes] = {}

    def take(message: Message, raw: bytes) -> None:
        own_keys = parse(message.data, Keys, message.party, "keys")
        checked_keys({**keys, message.party: own_keys})
        keys[message.party], sealed[message.party] = own_keys, raw

    _gather(channel, attempt, "keys", channel.sites, deadline_s, take, refused)
    _require(settings, channel, "showed keys", len(keys), len(keys), refused)
    channel.send(attempt, "keys", dict.fromkeys(sorted(keys), to_bytes(ForwardedKeys(sealed))))
    return keys


def _members(
    settings: Settings,
    channel: HubChannel,
    attempt: int,
    keys: Mapping[str, Keys],
    refused: dict[str, MedfedError],
) -> Sequence[str]:
    stands = _already_posted(channel, attempt, "shares")
    if stands is not None:
        return sorted(stands)
    around = neighbours(keys, settings.neighbours)
    boxes: dict[str, dict[str, bytes]] = {}

    def take(message: Message, raw: bytes) -> None:
        shares = parse(message.data, SealedShares, message.party, "shares")
        if sorted(shares.boxes) != around[message.party]:
            raise PrivacyError(f"site '{message.party}' sent shares to sites that are not its neighbours")
        boxes[message.party] = shares.boxes

    _gather(channel, attempt, "shares", sorted(keys), settings.patience_s, take, refused)
    members = sorted(boxes)
    _require(settings, channel, "sent shares", len(members), len(keys), refused)
    channel.send(
        attempt,
        "shares",
        {
            site: to_bytes(DeliveredShares(members, {o: boxes[o][site] for o in around[site] if o in boxes}))
            for site in members
        },
    )
    return members


def _checked_shares(message: Message, sites: Sequence[str], dropped: Sequence[str]) -> Shares:
    """Return a site's unmasking shares.

    Raises:
        PrivacyError: if they are not those that were requested, or have the wrong length.
    """
    shares = parse(message.data, Shares, message.party, "unmask")
    if not set(shares.seeds) <= set(sites) or not set(shares.keys) <= set(dropped):
        raise PrivacyError(f"site '{message.party}' gave shares that nobody asked for")
    if any(len(share) != SHARE_BYTES for share in [*shares.seeds.values(), *shares.keys.values()]):
        raise PrivacyError(f"site '{message.party}' gave a share of another length than {SHARE_BYTES} bytes")
    return shares


@dataclass(frozen=True)
class HubSum:
    """One attempt at a round, from the masked updates to their sum."""

    settings: Settings
    channel: HubChannel
    attempt: int
    keys: Mapping[str, Keys]
    sites: Sequence[str]
    refused: dict[str, MedfedError] = field(default_factory=dict)

    @property
    def deadline_s(self) -> float | None:
        return self.settings.patience_s

    @property
    def _point(self) -> FixedPoint:
        return self.settings.fixed_point(len(self.sites))

    def admit(self, update: Update, weights: Weights) -> Update:
        who = f"update of site '{update.site}' for round {update.round}"
        dtype = self._point.dtype
        if set(update.delta) != set(weights):
            odd = sorted(set(update.delta) ^ set(weights))[0]
            raise UpdateError(f"{who}: '{odd[:80]}' is not in both the update and the global model")
        for name, tensor in update.delta.items():
            if tensor.dtype != dtype or tensor.shape != weights[name].shape:
                raise UpdateError(
                    f"{who}: '{name}' is {tensor.dtype} of shape {tuple(tensor.shape)}, expected masked "
                    f"numbers: {dtype} of shape {tuple(weights[name].shape)}"
                )
        count = update.groups.get(GROUP, {}).get(EXAMPLES)
        if set(update.groups) != {GROUP} or count is None or count.dtype != dtype or count.numel() != 1:
            raise UpdateError(
                f"{who}: its masked number of examples is missing, or something is there beside it"
            )
        if update.examples != 0:
            raise UpdateError(f"{who}: it tells its {update.examples} examples, which a secure sum hides")
        for name, value in update.scalars.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise UpdateError(f"{who}: scalar '{name}' is a {type(value).__name__}, expected a number")
        return update

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return one update with the mean of the sites' changes and the sum of their examples.

        Raises:
            QuorumError: if too few sites are in the sum, or too few sent shares to unmask it.
            PrivacyError: if the masks do not cancel.
        """
        came = {update.site: update for update in updates}
        _require(self.settings, self.channel, "sent a masked update", len(came), len(self.keys), self.refused)
        stands = self.channel.send(
            self.attempt, "members", dict.fromkeys(sorted(came), to_bytes(Members(sorted(came))))
        )
        sites = sorted(stands)
        if missing := sorted(set(sites) - set(came)):
            self._start_next_attempt()
            raise QuorumError(
                f"round {self.channel.round}: the sum was to be over {', '.join(sites)}, and the update of "
                f"'{missing[0]}' is no longer there; continue with --resume, which repeats the round"
            )
        try:
            seeds, keys = self._unmasking(sites)
            return [self._sum([came[site] for site in sites], seeds, keys, weights)]
        except (PrivacyError, QuorumError):
            self._start_next_attempt()
            raise

    def _start_next_attempt(self) -> None:
        self.channel.send(self.attempt + 1, "call", dict.fromkeys(self.channel.sites, b""))

    # -- shares

    def _unmasking(self, sites: Sequence[str]) -> tuple[dict[str, bytes], dict[str, X25519PrivateKey]]:
        """Return the seeds of the sites in the sum and the mask keys of those that dropped out."""
        dropped = sorted(set(self.sites) - set(sites))
        self.channel.send(
            self.attempt,
            "signed",
            dict.fromkeys(sites, to_bytes(UnmaskRequest(self._signed(sites), list(sites), dropped))),
        )
        given: dict[str, Shares] = {}
        seeds: dict[str, bytes] = {}
        keys: dict[str, bytes] = {}

        def take(message: Message, raw: bytes) -> bool:
            given[message.party] = _checked_shares(message, sites, dropped)
            for site in [site for site in sites if site not in seeds]:
                site_shares = {
                    giver: shares.seeds[site] for giver, shares in given.items() if site in shares.seeds
                }
                self._join(site, site_shares, seeds, partial(self._is_seed, site))
            for site in [site for site in dropped if site not in keys]:
                site_shares = {
                    giver: shares.keys[site] for giver, shares in given.items() if site in shares.keys
                }
                self._join(site, site_shares, keys, partial(self._is_key, site))
            return len(seeds) == len(sites) and len(keys) == len(dropped)

        _gather(self.channel, self.attempt, "unmask", sites, self.settings.patience_s, take, self.refused)
        lacking = [site for site in (*sites, *dropped) if site not in seeds and site not in keys]
        if lacking:
            raise QuorumError(
                f"round {self.channel.round}: the sum cannot be unmasked: {len(given)} of {len(sites)} sites "
                f"sent shares, and those of site '{lacking[0]}' are too few or don't match its key. "
                f"{_refusals(self.refused)}Start the sites that stopped and continue with --resume, "
                "which repeats the round with the same sites"
            )
        return seeds, {site: X25519PrivateKey.from_private_bytes(key) for site, key in keys.items()}

    def _signed(self, sites: Sequence[str]) -> dict[str, bytes]:
        sealed: dict[str, bytes] = {}
        fewest = self.settings.required(len(self.keys))

        def take(message: Message, raw: bytes) -> bool:
            if parse(message.data, Members, message.party, "signed").sites != list(sites):
                raise PrivacyError(f"site '{message.party}' signed another list of who is in the sum")
            sealed[message.party] = raw
            return len(sealed) >= fewest

        _gather(self.channel, self.attempt, "signed", sites, self.settings.patience_s, take, self.refused)
        if len(sealed) < fewest:
            raise QuorumError(
                f"round {self.channel.round}: {len(sealed)} of {len(sites)} sites signed who is in the sum, "
                f"{fewest} are needed. {_refusals(self.refused)}Start the sites that "
                "stopped and go on with --resume"
            )
        return sealed

    def _join(
        self,
        site: str,
        shares_by_giver: Mapping[str, bytes],
        secrets: dict[str, bytes],
        is_right: Callable[[bytes], bool],
    ) -> None:
        """Store a site's secret in `secrets` once enough shares have arrived, even if some are wrong."""
        around = neighbours(self.keys, self.settings.neighbours)[site]
        numbers = {holder: number for number, holder in enumerate(holders(site, around), start=1)}
        shares = {numbers[giver]: share for giver, share in shares_by_giver.items() if giver in numbers}
        at_least = required_sites(self.settings.threshold, len(numbers))
        for choice in islice(combinations(sorted(shares), at_least), MAX_CHOICES):
            chosen = {number: shares[number] for number in choice}
            try:
                secret = join(chosen)
            except PrivacyError:
                continue
            if is_right(secret):
                secrets[site] = secret
                self._report_wrong_shares(site, chosen, shares, numbers)
                return

    def _report_wrong_shares(
        self, site: str, good: Mapping[int, bytes], shares: Mapping[int, bytes], numbers: Mapping[str, int]
    ) -> None:
        for giver, number in numbers.items():
            if number in shares and not fits(good, number, shares[number]):
                self.channel.log_refusal(
                    giver, "unmask", PrivacyError(f"its share of site '{site}' is wrong")
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
        updates: Sequence[Update],
        seeds: Mapping[str, bytes],
        keys: Mapping[str, X25519PrivateKey],
        weights: Weights,
    ) -> Update:
        scratch, streams = Scratch(), self._streams(seeds, keys)
        counts = [self._integers(update.groups[GROUP][EXAMPLES]) for update in updates]
        counting = self.settings.whole_numbers(len(self.sites))
        examples = int(summed(counts, counting, 1.0, streams, scratch)[0])
        most = self.settings.most_examples
        if not len(updates) <= examples <= len(updates) * most:
            raise PrivacyError(
                f"round {self.channel.round}: the masks of {', '.join(seeds)} don't cancel: the sum of their "
                f"examples would be {examples}; one of these sites did not mask as it agreed"
            )
        delta = {}
        for name in sorted(weights):
            parts = [self._integers(update.delta[name]) for update in updates]
            mean = summed(parts, self._point, most / examples, streams, scratch)
            delta[name] = torch.from_numpy(mean).reshape(weights[name].shape)
        return Update(f"the sum of {', '.join(seeds)}", self.channel.round, delta, examples)

    def _integers(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.reshape(-1).numpy().view(unsigned(self.settings.bits))

    def _streams(self, seeds: Mapping[str, bytes], keys: Mapping[str, X25519PrivateKey]) -> list[Stream]:
        around = neighbours(self.keys, self.settings.neighbours)
        streams = [Stream(derived(seed, "own mask"), -1) for seed in seeds.values()]
        for gone, key in keys.items():
            for site in seeds:
                if site in around[gone]:
                    agreed = agreed_key(key, self.keys[site].mask, f"mask {pair(site, gone)}")
                    # What the site that is there added for its pair with the one that is gone is taken back.
                    streams.append(Stream(agreed, -1 if site < gone else 1))
        return streams


# ---------------------------------------------------------------------------------------------- messages


def _gather(
    channel: HubChannel,
    attempt: int,
    step: str,
    sites: Sequence[str],
    deadline_s: float | None,
    take: Callable[[Message, bytes], bool | None],
    refused: dict[str, MedfedError],
) -> None:
    """Pass the sites' messages of a step to `take` until it has enough; one that does not fit is refused."""
    for delivery in channel.collect(attempt, step, sites, deadline_s):
        if delivery.message is None:
            assert delivery.error is not None
            refused[delivery.site] = delivery.error
            continue
        try:
            if take(delivery.message, delivery.sealed):
                return
        except MedfedError as error:
            channel.log_refusal(delivery.site, step, error)
            refused[delivery.site] = error


def _already_posted(channel: HubChannel, attempt: int, step: str) -> Mapping[str, bytes] | None:
    sent = channel.sent(step)
    return sent[1] if sent is not None and sent[0] == attempt else None


def _inside(sealed: bytes) -> bytes:
    """Return the content of a message that this hub verified before it stored it."""
    import msgspec

    return msgspec.json.decode(sealed.partition(b"\n")[2], type=Message).data


def _require(
    settings: Settings, channel: HubChannel, did: str, count: int, of: int, refused: Mapping[str, MedfedError]
) -> None:
    if count < settings.required(of):
        raise QuorumError(
            f"round {channel.round}: {count} of {len(channel.sites)} sites {did}, {settings.required(of)} "
            f"are needed for a secure sum (privacy.threshold, privacy.least). {_refusals(refused)}Start the "
            "sites that stopped and continue with --resume"
        )


def _refusals(refused: Mapping[str, MedfedError]) -> str:
    return "".join(f"{site}: {error}. " for site, error in sorted(refused.items()))
