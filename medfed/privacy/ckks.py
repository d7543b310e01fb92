"""Homomorphic encryption: the hub adds models that it cannot read, and never holds the merged one either.

Cheon, Kim, Kim, Song: Homomorphic Encryption for Arithmetic of Approximate Numbers, ASIACRYPT 2017, eprint
2016/421, by TenSEAL (an extra: `pip install medfed[he]`). Ring dimension 4096 with 108 bits of modulus,
which the homomorphic encryption standard rates at 128 bits of security; encryption is symmetric, because all
who encrypt hold the key.

Each site sends its encrypted layers times its examples. The hub adds the ciphertexts and publishes the sum;
every site decrypts it and divides. So the hub's checkpoints, run folder and measurements hold the ciphertext
and, for these layers, the untrained numbers; the trained model is at every site. A simulation takes it from a
site.

The secret key is held by all sites of the study, one key per run. One site creates it in the first round, and
the hub relays it to the others, encrypted for each (`_ckks_keys.py`); each keeps it in its own folder, with
mode 0600. A hub that lies gets no key: it is dealt to hospitals of the study to which the site agreed, by
certificates of the role `site`, at least `min_sites` of them, that train from one model (`_key_exchange.py`).
A hub that publishes something else than the sum, such as one site's ciphertext for the others to read, is
found out before anything is decrypted (`_ckks_tags.py`); a site that sends a wrong tag thereby stops the run,
and is named where the tag was made from another update than the hub got.
Collusion: a single site that gives the key to the hub opens every site's updates of the whole run,
past rounds included. Against a hub that may win over one site, use `secure_sum`, whose masks no single site
can remove. The decrypted numbers must never be given to the hub: CKKS's key can be computed from a ciphertext
and its decryption (Li, Micciancio, EUROCRYPT 2021, eprint 2020/1533). medfed never sends them; do not hand
over the final model while updates of the run must stay secret. Not hidden: layers that are not encrypted, the
number of examples, scores, sizes, who took part. A site must be present in the first round, because it cannot
read later models without the key. A merge is FedAvg's mean; nothing else can be computed on these
ciphertexts. Rounding: 1e-5 per number, divided by the total examples. Cost: benchmarks/RESULTS-encryption.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
import numpy as np
import torch

from medfed.errors import PrivacyError, UpdateError
from medfed.privacy._ckks_keys import KEY, relay_keys, shared_key
from medfed.privacy._ckks_tags import Tag, added, combine, open_tags, seal_tag, update_digest
from medfed.privacy._privacy import (
    GROUP,
    PlainSession,
    Privacy,
    PrivacyState,
    RoundSession,
    UpdateProtector,
)
from medfed.registry import kind_of
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel, Update, check_update
from medfed.wire.weights import Difference, Weights

# The ring's dimension, its modulus (the second prime is for keys only) and the scale, which leaves 2^25 in
# each direction for a sum.
DIMENSION, MODULUS_BITS, SCALE = 4096, (54, 54), 2.0**28
SLOTS = DIMENSION // 2
MAX_SUM = 2.0**24

# Ciphertexts per transmitted tensor, and the maximum bytes of one (2 polynomials of 54 bits take 61,735).
CIPHERTEXTS_PER_TENSOR = 64
MAX_CIPHERTEXT_BYTES = 70_000

SUM, ENCRYPTED, EXAMPLES = f"{GROUP}ckks", "ckks", "examples"

# The tag among an update's ciphertexts, what it is called by site beside the sum, and its maximum bytes: one
# ciphertext and some numbers.
TAG, TAG_OF, MAX_TAG_BYTES = "tag", "tag of ", MAX_CIPHERTEXT_BYTES + 1000

# What the digest of each site's merged ciphertexts is called beside the sum.
UPDATE_OF = "update of "

T = TypeVar("T")


class Ckks(Privacy, tag="ckks", frozen=True):
    """CKKS by TenSEAL: the hub adds encrypted models, and only the sites can read the sum.

    All sites hold one key.

    layers: the names, or prefixes of names, of the tensors to encrypt, or `all`; other tensors travel in the
    clear.  min_sites: the smallest number of sites that share the key; with two, each can compute the other's
    model.  patience_s: how many seconds the site that creates the key may take to distribute it.
    """

    layers: Literal["all"] | list[str] = "all"
    min_sites: Annotated[int, msgspec.Meta(ge=2)] = 3
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0

    reveals_each_update: ClassVar[bool] = False
    packages: ClassVar[Mapping[str, str]] = {"tenseal": "medfed[he]"}
    sends: ClassVar[tuple[str, ...]] = (ENCRYPTED,)
    broadcast: ClassVar[tuple[str, ...]] = (SUM,)

    def objections(self, study: Any) -> Iterator[str]:
        if kind_of(study.rule) != "fedavg":
            yield (
                f"rule.kind: '{kind_of(study.rule)}' computes with the merged model, which privacy 'ckks' "
                "hides from the hub; only the mean of fedavg can be taken of what is encrypted"
            )
        if study.sampling.fraction < 1:
            yield (
                "sampling.fraction: under privacy 'ckks' every site must take part in the first round, where "
                "the key is made; set it to 1"
            )

    @property
    def bytes_per_number(self) -> float:
        return MAX_CIPHERTEXT_BYTES / SLOTS

    def notes(self) -> tuple[str, ...]:
        return (
            "the hub never holds the trained model: its checkpoints and measurements have the untrained "
            "encrypted layers; take the model from a site",
            "no update is read by the hub, even if it lies, as long as no hospital gives it the key that all "
            f"hold; at least {self.min_sites} hospitals hold it",
            f"each hospital decrypts only what it verified to be the sum of at least {self.min_sites} "
            "hospitals' updates of the round; one that sends a wrong tag stops the run",
        )

    def protectors(self, channel: SiteChannel) -> Iterator[UpdateProtector]:
        key = shared_key(channel, _new_key)
        if key is not None:
            yield _Encryptor(self, key)

    def open_session(self, channel: HubChannel, deadline_s: float | None) -> RoundSession:
        sites, refused = relay_keys(channel, deadline_s, self.patience_s, self.min_sites)
        return PlainSession(self, sites, deadline_s, refused)

    def admit(self, update: Update, weights: Weights) -> Update:
        plain = {name: tensor for name, tensor in weights.items() if not self.encrypts(name)}
        check_update(replace(update, groups={}), plain)
        if update.examples < 1:
            raise UpdateError(f"{update}: {update.examples} examples, expected at least 1")
        count = sum(weights[name].numel() for name in weights if name not in plain)
        expected = dict(_pieces(range(_ciphertexts_for(count))))
        group = update.groups.get(ENCRYPTED, {})
        if sorted(group) != [*expected, TAG] or set(update.groups) != {ENCRYPTED}:
            pieces = len(set(group) - {TAG})
            raise UpdateError(
                f"{update}: {pieces} pieces of ciphertext and {'a' if TAG in group else 'no'} tag, expected "
                f"{len(expected)} and a tag"
            )
        _check_tag(update, group[TAG])
        for name, places in expected.items():
            _check_ciphertexts(f"{update}: piece {name}", group[name], len(places))
        return update

    def init(self, weights: Weights) -> PrivacyState:
        return {SUM: {EXAMPLES: torch.tensor(0)}}

    def prepare_merge(
        self, updates: Sequence[Update], state: PrivacyState, weights: Weights
    ) -> tuple[Sequence[Update], PrivacyState]:
        """Return updates with zeros for encrypted layers, and a state with the sum of the ciphertexts."""
        merged = [
            replace(update, delta=_CiphertextView(update.delta, weights), groups={}) for update in updates
        ]
        return merged, {**state, SUM: _sum_ciphertexts(sorted(updates, key=lambda update: update.site))}

    def decrypt(self, received: GlobalModel, channel: SiteChannel) -> GlobalModel:
        if SUM not in received.groups:
            return received
        rest = {name: group for name, group in received.groups.items() if name != SUM}
        if not _examples(received.groups[SUM], channel):
            return replace(received, groups=rest)  # untrained: there is no sum yet
        key = channel.load_secret(KEY)
        if key is None:
            raise PrivacyError(
                f"site '{channel.site}', round {received.round}: the model's encrypted layers are closed to "
                "this site: it has no key. A site gets it in the study's first round; if its folder was "
                "lost, start a new run"
            )
        with channel.logged_refusals():
            _check_sum(received, key, channel)
        return replace(received, weights=_decrypted(self, received, key), groups=rest)

    def encrypts(self, name: str) -> bool:
        """Return whether a tensor of this name is encrypted."""
        return self.layers == "all" or any(name.startswith(layer) for layer in self.layers)


# -------------------------------------------------------------------------------------------- in the hospital


@dataclass(frozen=True)
class _Encryptor:
    """Encrypts one update at a site that holds the key."""

    privacy: Ckks
    key: bytes

    def protect(self, update: Update, weights: Weights) -> Update:
        hidden = [name for name in sorted(weights) if self.privacy.encrypts(name)]
        if not hidden:
            raise PrivacyError(
                f"privacy.layers: none of the model's tensors begins with {', '.join(self.privacy.layers)}; "
                f"there are {', '.join(list(weights)[:6])}"
            )
        shown = _part(update.delta, [name for name in weights if name not in hidden])
        return replace(update, delta=shown, groups={ENCRYPTED: self._encrypted(update, weights, hidden)})

    def _encrypted(self, update: Update, weights: Weights, hidden: Sequence[str]) -> dict[str, torch.Tensor]:
        ts, context = _tenseal(), _context(self.key)
        flat = np.concatenate([_local(update, weights, name).reshape(-1).numpy() for name in hidden])
        flat *= update.examples
        largest = float(np.abs(flat).max())
        if not largest < MAX_SUM / 64:
            raise PrivacyError(
                f"{update}: a weight times its {update.examples} examples is {largest:.3g}; ckks adds "
                f"numbers below {MAX_SUM / 64:.3g} of up to 64 sites"
            )

        # The last one is as large as the others, so that one combination holds all.
        slots = np.zeros((_ciphertexts_for(flat.size), SLOTS))
        slots.reshape(-1)[: flat.size] = flat
        parts = [ts.ckks_vector(context, ts.plain_tensor(values)).serialize() for values in slots]
        combined = combine(ts, context, self.key, update.round, parts)
        made_from = update_digest(update.examples, parts)
        tag = seal_tag(self.key, Tag(update.site, update.round, update.examples, combined, made_from))
        return {**{name: _packed(some) for name, some in _pieces(parts)}, TAG: _as_tensor(tag)}


def _pieces(items: Sequence[T]) -> Iterator[tuple[str, Sequence[T]]]:
    """Yield what stands for the ciphertexts, in order, under the names of the tensors that carry them."""
    for number, first in enumerate(range(0, len(items), CIPHERTEXTS_PER_TENSOR)):
        yield f"{number:05d}", items[first : first + CIPHERTEXTS_PER_TENSOR]


def _ciphertexts_for(count: int) -> int:
    """Return how many ciphertexts hold so many numbers."""
    return -(-count // SLOTS)


def _local(update: Update, weights: Weights, name: str) -> torch.Tensor:
    if isinstance(update.delta, Difference):
        return update.delta.minuend[name].double()
    return weights[name].double() + update.delta[name].double()


def _part(delta: Weights, names: Iterable[str]) -> Weights:
    """Return these tensors of a difference of weights."""
    if isinstance(delta, Difference):
        return Difference(_part(delta.minuend, names), _part(delta.subtrahend, names))
    return {name: delta[name] for name in names}


def _ciphertexts(group: Weights) -> list[bytes]:
    """Return the ciphertexts of an update or a sum, in order."""
    return [part for name in sorted(group) if name.isdecimal() for part in _unpacked(group[name])]


def _examples(group: Weights, channel: SiteChannel) -> int:
    """Return the number of examples that the hub states for a sum; 0 of an untrained model.

    Raises:
        PrivacyError: if it states none.
    """
    stated = group.get(EXAMPLES)
    if stated is None or stated.shape or stated.dtype != torch.int64:
        with channel.logged_refusals():
            raise PrivacyError(
                f"{channel.who}: the merged model does not state the number of examples as a whole number; "
                "nothing is decrypted"
            )
    return int(stated)


def _check_sum(received: GlobalModel, key: bytes, channel: SiteChannel) -> None:
    """Check that what the hub published is the sum of enough hospitals' ciphertexts of the round.

    Raises:
        PrivacyError: if it is anything else. Nothing was decrypted then.
    """
    group, who = received.groups[SUM], f"site '{channel.site}', round {received.round}"
    sealed = {name.removeprefix(TAG_OF): group[name] for name in group if name.startswith(TAG_OF)}
    if strangers := sorted(set(sealed) - set(channel.parties)):
        raise PrivacyError(
            f"{who}: the hub shows '{strangers[0][:80]}' as a party of the sum, expected hospitals that "
            f"train in the study ({', '.join(channel.parties) or 'none are known here'}); nothing is "
            "decrypted"
        )
    if len(sealed) < channel.min_sites:
        raise PrivacyError(
            f"{who}: the merged model is the sum of {len(sealed)} hospitals' ciphertexts, "
            f"{channel.min_sites} are needed (privacy.min_sites); nothing is decrypted"
        )
    try:
        tags = open_tags(key, {site: _as_bytes(tensor) for site, tensor in sealed.items()}, received.round)
        _check_merged(tags, group)
        ts, context = _tenseal(), _hub_context()
        published = combine(ts, context, key, received.round, _ciphertexts(group))
        whole = published == added(ts, context, tags)
    except (PrivacyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        reason = error if isinstance(error, PrivacyError) else "it holds no ciphertexts"
        raise PrivacyError(f"{who}: {reason}; nothing is decrypted") from None
    if not whole or sum(tag.examples for tag in tags) != int(group[EXAMPLES]):
        raise PrivacyError(
            f"{who}: what the hub published is not the sum of the ciphertexts of "
            f"{', '.join(sorted(sealed))}: the hub merged something else, or one of them sent a wrong tag; "
            "nothing is decrypted"
        )


def _check_merged(tags: Sequence[Tag], group: Weights) -> None:
    """Check that the hub says of each site that it merged the ciphertexts of which the site made its tag.

    Raises:
        PrivacyError: naming the first site of which it says something else.
    """
    for tag in tags:
        merged = group.get(f"{UPDATE_OF}{tag.site}")
        if merged is None or _as_bytes(merged) != tag.update:
            raise PrivacyError(
                f"site '{tag.site}' made its tag of other ciphertexts, or of another number of examples, "
                "than those that the hub says it merged of it: that site's update was damaged or is a lie, "
                "or the hub's word is. Compare its run folder with the hub's; if it happens again, start a "
                "new run without it"
            )


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _decrypted(privacy: Ckks, received: GlobalModel, key: bytes) -> dict[str, torch.Tensor]:
    ts, context = _tenseal(), _context(key)
    group = received.groups[SUM]
    examples = int(group[EXAMPLES])
    parts = _ciphertexts(group)
    flat = np.concatenate([np.asarray(ts.ckks_vector_from(context, part).decrypt()) for part in parts])
    flat /= examples
    weights = dict(received.weights)
    names = [name for name in sorted(weights) if privacy.encrypts(name)]
    sizes = [weights[name].numel() for name in names]
    if flat.size != _ciphertexts_for(sum(sizes)) * SLOTS:
        raise PrivacyError(
            f"round {received.round}: the encrypted sum holds {flat.size} numbers, expected "
            f"{_ciphertexts_for(sum(sizes)) * SLOTS} for the model's encrypted layers"
        )
    for name, values in zip(names, np.split(flat[: sum(sizes)], np.cumsum(sizes)[:-1]), strict=True):
        weights[name] = torch.from_numpy(values).reshape(weights[name].shape).to(weights[name].dtype)
    return weights


# ---------------------------------------------------------------------------------------------- at the hub


def _check_ciphertexts(what: str, piece: torch.Tensor, count: int) -> None:
    if piece.dtype != torch.uint8 or piece.dim() != 1 or piece.numel() > count * MAX_CIPHERTEXT_BYTES:
        raise UpdateError(f"{what}: {piece.numel()} numbers of {piece.dtype} are not {count} ciphertexts")
    ts, context = _tenseal(), _hub_context()
    parts = _unpacked(piece)
    if len(parts) != count:
        raise UpdateError(f"{what}: {len(parts)} ciphertexts, expected {count}")
    for part in parts:
        try:
            vector = ts.ckks_vector_from(context, part)
            # Try an addition: ciphertexts of another scale or other parameters cannot be added.
            fits = list(vector.shape) == [SLOTS] and list((vector + _trial()).shape) == [SLOTS]
        except (ValueError, RuntimeError, IndexError):
            fits = False
        if not fits:
            raise UpdateError(f"{what}: does not hold a ciphertext of {SLOTS} numbers")


def _check_tag(update: Update, tag: torch.Tensor) -> None:
    if tag.dtype != torch.uint8 or tag.dim() != 1 or not 0 < tag.numel() <= MAX_TAG_BYTES:
        raise UpdateError(
            f"{update}: its tag has {tag.numel()} numbers of {tag.dtype}, expected at most {MAX_TAG_BYTES} "
            "bytes"
        )


def _sum_ciphertexts(updates: Sequence[Update]) -> dict[str, torch.Tensor]:
    ts, context = _tenseal(), _hub_context()
    total: dict[str, torch.Tensor] = {EXAMPLES: torch.tensor(sum(update.examples for update in updates))}
    for update in updates:
        group = update.groups[ENCRYPTED]
        total[f"{TAG_OF}{update.site}"] = group[TAG]
        merged = update_digest(update.examples, _ciphertexts(group))
        total[f"{UPDATE_OF}{update.site}"] = _as_tensor(merged)
    for name in sorted(set(updates[0].groups[ENCRYPTED]) - {TAG}):
        sums: list[Any] = []
        for update in updates:
            parts = _unpacked(update.groups[ENCRYPTED][name])
            vectors = [ts.ckks_vector_from(context, part) for part in parts]
            sums = [one + other for one, other in zip(sums, vectors, strict=True)] if sums else vectors
        total[name] = _packed([ciphertext.serialize() for ciphertext in sums])
    return total


class _CiphertextView(Mapping[str, torch.Tensor]):
    """A difference with zeros where a tensor is encrypted, so that a rule keeps the hub's values."""

    def __init__(self, shown: Weights, weights: Weights) -> None:
        self._shown, self._weights = shown, weights

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._shown[name] if name in self._shown else torch.zeros_like(self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


# ---------------------------------------------------------------------------------------------- TenSEAL


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError:
        raise PrivacyError("privacy.kind: ckks needs TenSEAL; install medfed[he]") from None
    return tenseal


def _new_context() -> Any:
    ts = _tenseal()
    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        DIMENSION,
        coeff_mod_bit_sizes=list(MODULUS_BITS),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = SCALE
    return context


@cache
def _trial() -> Any:
    return _tenseal().ckks_vector(_hub_context(), [0.0] * SLOTS)


@cache
def _hub_context() -> Any:
    # Only its parameters are used; the key that is generated with them decrypts nothing.
    return _new_context()


def _new_key() -> bytes:
    key: bytes = _new_context().serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    return key


@lru_cache(maxsize=1)  # reading it takes as long as encrypting five ciphertexts
def _context(key: bytes) -> Any:
    context = _tenseal().context_from(key, n_threads=1)
    context.global_scale = SCALE
    return context


def _packed(parts: Sequence[bytes]) -> torch.Tensor:
    """Return byte strings packed in one tensor: their count, their lengths, their bytes."""
    lengths = np.array([len(parts), *map(len, parts)], "<u4").tobytes()
    return _as_tensor(lengths + b"".join(parts))


def _unpacked(piece: torch.Tensor) -> list[bytes]:
    """Return the byte strings packed in a tensor; empty if it is malformed."""
    data = piece.numpy().tobytes()
    count = int.from_bytes(data[:4], "little")
    if not 0 < count <= CIPHERTEXTS_PER_TENSOR or len(data) < 4 * (count + 1):
        return []
    lengths = np.frombuffer(data[4 : 4 * (count + 1)], "<u4").astype(np.int64)
    ends = 4 * (count + 1) + np.cumsum(lengths)
    if ends[-1] != len(data):
        return []
    return [data[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
