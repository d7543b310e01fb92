"""What travels between a hospital and the hub: the `GlobalModel` one way, an `Update` the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from medfed.errors import UpdateError, WireError
from medfed.wire.untrusted_text import for_log
from medfed.wire.weights import Difference, Weights, approximate_norm, digest

# The norm, in multiples of those of the same round, above which an update is refused (see `outlier_errors`).
DEFAULT_OUTLIER_FACTOR = 1000.0

# The most training examples that one site may state, by default: far beyond what a hospital has.
MAX_EXAMPLES = 1_000_000

# A tensor of integers holds 63 bits; a larger number of examples is refused, whatever a study's bound is.
MAX_COUNT_BITS = 62

# The norm, in multiples of the model's own, up to which no update is refused, however small the others are.
MIN_OUTLIER_IN_MODELS = 10.0

# A model whose values are smaller than this on average (a head initialised to zero) counts as one
# of such values.
MIN_MEAN_MAGNITUDE = 0.1


@dataclass(frozen=True)
class Encoded:
    """Groups of named tensors for the wire, with a header of plain numbers, texts, lists and dicts."""

    groups: Mapping[str, Weights]
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The size of all tensors together."""
        return sum(t.numel() * t.element_size() for group in self.groups.values() for t in group.values())


@dataclass(frozen=True)
class Update:
    """What crosses a hospital's wall: a difference of weights, example count, and scalars.

    `delta` is local minus global, by tensor name; a site that only evaluates sends an empty one with no
    examples. `scalars` are numbers over all of a site's cases (`val/dice`, `train/steps`), never of one
    patient. `groups` are further named tensors that a method needs (SCAFFOLD's control variate under
    `control`). If a study compresses, `encoded` replaces the delta in transit, and the delta is empty.
    `audit_head` is the digest of the last line of the site's audit log, which the hub keeps.
    """

    site: str
    round: int
    delta: Weights
    examples: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Weights] = field(default_factory=dict)
    encoded: Encoded | None = None
    audit_head: str = ""

    def __str__(self) -> str:
        """Return how errors name this update."""
        return f"update of site '{self.site}' for round {self.round}"

    @property
    def evaluation_only(self) -> bool:
        """Whether this update holds only numbers for the report and no weights."""
        return not self.delta and self.encoded is None and self.examples == 0


@dataclass(frozen=True)
class GlobalModel:
    """What the hub sends to every site: the model after `round` merges, and who trains next.

    Round 0 is the untrained model. `participants` are the sites that train for round + 1, None for
    all of them. `groups` are a rule's further tensors for the sites (SCAFFOLD's control variate).
    `final` ends the study. `scoring` asks every site for its validation scores of this model, the last one
    merged, before the hub chooses; the final model is then `chosen`, the round whose model it is. `classes`
    are the names of the model's outputs, in order, if the hub pins them. `sha256` is what a site measured of
    it as it arrived (`model_digest`), before anything in it was decrypted; an exchange never copies it from
    what was sent. `rule` is the kind of the hub's rule, `needs_local` the local methods of which it merges
    sites only, `needs_scalars` the numbers that it needs of every site, `privacy` the kind of the hub's
    privacy mechanism, '' without one. `asynchronous` says that the hub also merges updates for earlier
    rounds. `audit_head` is the digest of the last line of the hub's audit log, which sites keep.
    """

    round: int
    weights: Weights
    participants: tuple[str, ...] | None = None
    final: bool = False
    study_digest: str = ""
    groups: Mapping[str, Weights] = field(default_factory=dict)
    sha256: str = ""
    classes: tuple[str, ...] = ()
    rule: str = ""
    needs_local: tuple[str, ...] = ()
    needs_scalars: tuple[str, ...] = ()
    privacy: str = ""
    scoring: bool = False
    chosen: int | None = None
    asynchronous: bool = False
    audit_head: str = ""

    @property
    def ends_training(self) -> bool:
        """Whether no site trains any further."""
        return self.final or self.scoring

    @property
    def merges(self) -> int:
        """The round whose merged model this is: the chosen one, else its own."""
        return self.round if self.chosen is None else self.chosen

    def selects(self, site: str) -> bool:
        """Return whether this site trains for the next round."""
        return not self.ends_training and (self.participants is None or site in self.participants)


def model_digest(model: GlobalModel) -> str:
    """Return the SHA-256 of all tensors of a model, its groups' too; the one measured on arrival, if any."""
    if model.sha256 or not model.groups:
        return model.sha256 or digest(model.weights)
    lines = [
        digest(model.weights),
        *(f"{name} {digest(model.groups[name])}" for name in sorted(model.groups)),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_model(model: GlobalModel, who: str) -> GlobalModel:
    """Return the hub's model if a site can train from it; `who` is the site, for the message.

    Raises:
        WireError: naming the first tensor with values that are not finite, or no floating-point ones.
    """
    for name in sorted(model.weights):
        tensor = model.weights[name]
        if not tensor.is_floating_point() and not tensor.is_complex():
            found = f"has dtype {tensor.dtype}, expected a floating-point one"
        elif not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            found = f"has {bad} of {tensor.numel()} values that are not finite"
        else:
            continue
        raise WireError(
            f"{who}: '{for_log(name, 80)}' of the hub's model of round {model.round} {found}: the hub merged "
            "what it should have refused, or sends another model; nothing is trained from it"
        )
    return model


def check_update(update: Update, against: Weights) -> Update:
    """Return the update if it matches the model, a difference with its norm.

    One pass over the values measures the norm and shows whether all are finite; it is left out where it was
    made before in this process.

    Raises:
        UpdateError: naming site, round and tensor: a missing or unknown name, another shape or dtype, a value
            that is not finite, or a number of examples that is not a positive integer.
    """
    if update.evaluation_only:
        return update
    if not isinstance(update.examples, int) or isinstance(update.examples, bool) or update.examples < 1:
        raise UpdateError(
            f"{update}: trained on {update.examples} examples; a merge weights sites by their examples, so "
            f"at least 1 is needed: does this site's training split hold any case?"
        )
    if (bits := update.examples.bit_length()) > MAX_COUNT_BITS:
        # Not written out: a number of thousands of digits is an error of its own.
        raise UpdateError(
            f"{update}: states a number of examples of {bits} bits, expected at most {MAX_COUNT_BITS}"
        )
    # A difference is finite where both its operands are; computing it in float64 to check would need
    # a model's memory.
    sent = update.delta.minuend if isinstance(update.delta, Difference) else update.delta
    for name in sorted(against):
        if name not in sent:
            raise UpdateError(f"{update}: '{name}' is missing; the global model has it{_SAME_NETWORK}")
    for name in sorted(sent):
        if name not in against:
            raise UpdateError(f"{update}: '{name}' is not in the global model{_SAME_NETWORK}")
        _check_form(f"{update}: '{name}'", sent[name], against[name])
    delta = _measured(update.delta)
    if not isinstance(delta, Difference) or delta.norm is None:
        for name in sorted(sent):
            _check_finite(f"{update}: '{name}'", sent[name])
    for group, tensors in update.groups.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UpdateError(f"{update}: '{name}' of group '{group}' has values that are not finite")
    check_scalars(update)
    return update if delta is update.delta else replace(update, delta=delta)


def _measured(delta: Weights) -> Weights:
    """Return a difference with its norm, unless that is not finite; anything else as it is."""
    if not isinstance(delta, Difference) or delta.norm is not None:
        return delta
    length = approximate_norm(delta)
    return Difference(delta.minuend, delta.subtrahend, length) if isfinite(length) else delta


def check_scalars(update: Update) -> None:
    """Check that an update's scalars are numbers.

    Raises:
        UpdateError: naming the first that is not.
    """
    for name, value in update.scalars.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise UpdateError(f"{update}: scalar '{name}' is a {type(value).__name__}, expected a number")


_SAME_NETWORK = "; do site and hub run the same study (network, keep_local) and the same version of medfed?"


def _check_form(what: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise UpdateError(
            f"{what} has shape {tuple(tensor.shape)}, the global model has "
            f"{tuple(expected.shape)}{_SAME_NETWORK}"
        )
    if not tensor.is_floating_point():
        raise UpdateError(
            f"{what} has dtype {tensor.dtype}, expected a floating-point one such as {expected.dtype}"
        )


def _check_finite(what: str, tensor: Tensor) -> None:
    # One sum shows whether each value must be checked: it is finite unless a value is not, or it overflows.
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise UpdateError(
            f"{what} has {bad} of {tensor.numel()} values that are not finite; training diverged there: a "
            f"lower learning rate or gradient clipping (train.clip) at that site helps"
        )


def outlier_errors(updates: Sequence[Update], weights: Weights, factor: float) -> list[UpdateError | None]:
    """Return for each update of one round why its norm is too large to come from training, or None.

    Too large is more than `factor` times the median norm of the round's updates (of an even number, the
    lower of the two in the middle) and more than 10 times the model's own, so that nobody makes others too
    large by sending next to nothing. A single update has no others to compare with: its norm may be
    `factor` times the model's. Norms are Euclidean over all tensors. The result does not depend on the
    order in which updates arrive.

    docs/privacy.md has the largest ratio among honest hospitals in any study, method and round that we
    examined; both limits are far beyond it. They stop what a fault or a lie has multiplied, but no attacker
    who knows them: robust rules do.
    """
    norms = [_norm_of(update.delta) for update in updates]
    numbers = sum(tensor.numel() for tensor in weights.values())
    model = max(approximate_norm(weights), MIN_MEAN_MAGNITUDE * numbers**0.5)
    if len(norms) > 1:
        reference, whose = sorted(norms)[(len(norms) - 1) // 2], "the median of this round's"
        limit = max(factor * reference, MIN_OUTLIER_IN_MODELS * model)
    else:
        reference, whose, limit = model, "the model's own", factor * model
    return [
        UpdateError(
            f"{update}: its norm is {value:.3g}, {whose} {reference:.3g}; more than {limit:.3g} is not from "
            "training (sampling.outlier): look at that site's loss, data and version of medfed"
        )
        if not value <= limit
        else None
        for update, value in zip(updates, norms, strict=True)
    ]


def _norm_of(delta: Weights) -> float:
    known = delta.norm if isinstance(delta, Difference) else None
    return approximate_norm(delta) if known is None else known


def finite_scalars(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the scalars that are finite; a metric undefined at a site is omitted, not sent as NaN."""
    return {name: float(value) for name, value in scalars.items() if isfinite(float(value))}
