"""What travels between a hospital and the hub: the `GlobalModel` model one way, an `Update` the
other, and its check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from medfed.errors import UpdateError
from medfed.wire.weights import Difference, Weights, norm

# An update may be so many times as long as those of the same round before it is refused (see `outlier_errors`).
OUTLIER = 1000.0

# Up to so many times the model's own length no update is refused, however short the others are.
ALWAYS_PLAUSIBLE = 10.0

# A model whose numbers are smaller than this on average (a head that begins at zero) counts as one
# of such numbers.
SMALLEST_NUMBER = 0.1


@dataclass(frozen=True)
class Encoded:
    """Groups of named tensors that go on the wire, and a header of plain numbers, texts, lists
    and dicts beside them.
    """

    groups: Mapping[str, Weights]
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(t.numel() * t.element_size() for group in self.groups.values() for t in group.values())


@dataclass(frozen=True)
class Update:
    """What crosses a hospital's wall: a difference of weights, how many examples made it, and
    floats for the report.

    `delta` is local minus global, by tensor name; a site that only evaluates sends an empty one with no
    examples. `scalars` are numbers over all of a site's cases (`val/dice`, `train/steps`), never of one
    patient. `groups` are further named tensors that a method needs (SCAFFOLD's control variate under
    `control`). `encoded` stands for the delta on its way where a study compresses; the delta is empty then.
    """

    site: str
    round: int
    delta: Weights
    examples: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Weights] = field(default_factory=dict)
    encoded: Encoded | None = None

    @property
    def evaluation_only(self) -> bool:
        """Whether this update carries numbers for the report and no weights."""
        return not self.delta and self.encoded is None and self.examples == 0


@dataclass(frozen=True)
class GlobalModel:
    """What the hub sends every site: the model after `round` merges, and who trains next.

    Round 0 is the untrained model. `participants` are the sites that train towards round + 1, None for
    all of them. `groups` are a rule's further tensors for the sites (SCAFFOLD's control variate).
    `final` ends the study.
    """

    round: int
    weights: Weights
    participants: tuple[str, ...] | None = None
    final: bool = False
    study: str = ""
    groups: Mapping[str, Weights] = field(default_factory=dict)

    def asks(self, site: str) -> bool:
        """Whether this site trains towards the next round."""
        return not self.final and (self.participants is None or site in self.participants)


def check(update: Update, against: Weights) -> Update:
    """Return the update if it fits the model, else say what does not.

    Raises:
        UpdateError: naming the site, the round and the tensor: a missing or unknown name, another shape or dtype,
            a value that is not finite, or a number of examples that is not a whole number above zero.
    """
    if update.evaluation_only:
        return update
    who = f"update of site '{update.site}' for round {update.round}"
    if not isinstance(update.examples, int) or isinstance(update.examples, bool) or update.examples < 1:
        raise UpdateError(
            f"{who}: trained on {update.examples} examples; a merge weighs sites by their examples, so at least 1 is "
            f"needed: does this site's training split hold any case?"
        )
    # A difference is finite where both its sides are, and forming it in float64 only to look would cost
    # a model's memory.
    sent = update.delta.minuend if isinstance(update.delta, Difference) else update.delta
    for name in sorted(against):
        if name not in sent:
            raise UpdateError(f"{who}: '{name}' is missing; the global model has it{_same_network}")
    for name in sorted(sent):
        if name not in against:
            raise UpdateError(f"{who}: '{name}' is not in the global model{_same_network}")
        _check_tensor(f"{who}: '{name}'", sent[name], against[name])
    for group, tensors in update.groups.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UpdateError(f"{who}: '{name}' of group '{group}' has values that are not finite")
    for name, value in update.scalars.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise UpdateError(f"{who}: scalar '{name}' is a {type(value).__name__}, expected a number")
    return update


_same_network = "; do site and hub run the same study (network, keep_local) and the same version of medfed?"


def _check_tensor(what: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise UpdateError(
            f"{what} has shape {tuple(found.shape)}, the global model has {tuple(expected.shape)}{_same_network}"
        )
    if not found.is_floating_point():
        raise UpdateError(
            f"{what} has dtype {found.dtype}, expected a floating-point one such as {expected.dtype}"
        )
    # One sum says whether a look at each value is needed: it is finite unless a value is not,
    # or it overflows.
    if not bool(torch.isfinite(found.sum())) and not bool(torch.isfinite(found).all()):
        bad = int((~torch.isfinite(found)).sum())
        raise UpdateError(
            f"{what} has {bad} of {found.numel()} values that are not finite; training diverged there: a lower learning "
            f"rate or gradient clipping (train.clip) at that site helps"
        )


def outlier_errors(updates: Sequence[Update], weights: Weights, times: float) -> list[UpdateError | None]:
    """Return for each update of one round why it is too long to be of training, or None.

    Too long is more than `times` the median length of the round's updates (with an even number, the
    lower of the two in the middle) and more than 10 times the model's own, so that nobody makes others
    too long by sending next to nothing. One alone has no others to compare with: it may be `times` as
    long as the model. Lengths are Euclidean norms over all tensors. What is refused does not depend on
    the order in which updates came.

    The widest that honest hospitals were in any study, method and round that we looked at is in
    docs/privacy.md; both limits are far beyond it. They stop what a fault or a lie multiplied, and no
    attacker who knows them: robust rules do.
    """
    lengths = [norm(update.delta) for update in updates]
    numbers = sum(tensor.numel() for tensor in weights.values())
    model = max(norm(weights), SMALLEST_NUMBER * numbers**0.5)
    if len(lengths) > 1:
        usual, among = sorted(lengths)[(len(lengths) - 1) // 2], "the median of this round's"
        limit = max(times * usual, ALWAYS_PLAUSIBLE * model)
    else:
        usual, among, limit = model, "the model's own", times * model
    return [
        UpdateError(
            f"update of site '{update.site}' for round {update.round}: its norm is {length:.3g}, {among} {usual:.3g}; more "
            f"than {limit:.3g} is not from training (sampling.outlier): look at that site's loss, data and version of medfed"
        )
        if not length <= limit
        else None
        for update, length in zip(updates, lengths, strict=True)
    ]


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the scalars that are finite numbers; a metric undefined at a site is left out rather
    than sent as NaN.
    """
    return {name: float(value) for name, value in scalars.items() if isfinite(float(value))}
