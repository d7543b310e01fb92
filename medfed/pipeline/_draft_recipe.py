"""The recipe of a drafted segmentation: network, patch and epochs, by default or by a budget of time.

What a budget buys follows from a short timing of this machine (`_draft_timing.py`) and the hospitals' numbers
of cases alone: the same timing gives the same plan. The largest network is taken with which each training
case is still seen often enough; a larger one that sees its cases less often learns less in the same time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medfed.errors import StudyError

# How often training is to see each case before a larger network may pay. On four hospitals' hippocampi the
# validation scores of the default recipe, of 60 visits, were flat from 40 on.
MIN_VISITS = 60
# More than this gains nothing that was measured; the time is left over.
MAX_VISITS = 500
# The share of a round that may go into validation; more epochs per round make it smaller.
MAX_VALIDATION = 0.15
MAX_LOCAL_EPOCHS = 10
# What merging, checkpoints, metrics and the report take beside training and prediction.
RESERVE = 0.1
# Training cases of the smallest hospital from which a classifier has batch norm and batches of 32: on the
# adrenal glands (297 a hospital) it learns far more in the same time. With a dozen cases of mixed scanners
# (configs/classify.yaml) it fits them faster, and a hospital that took no part is classified worse.
MANY_CASES = 256
# The overlap of windows in prediction (the task's default), and the patches per step.
OVERLAP, BATCH = 0.25, 2
# What bringing a prediction back to its file's grid and measuring it takes, per voxel of the image.
METRICS_S = 3e-6

_BUDGET = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([mhd])")
_UNIT_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Network:
    """A network that a plan may take: its kind, its settings as YAML, how it is called in words, and its
    learning rate.

    With .003 the smallest U-Net had a higher Dice on validation patients of the hippocampi than with .001, at
    the same budget; for the others .001 was not compared.
    """

    kind: str
    settings: tuple[str, ...]
    words: str
    rate: float = 0.001

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the study's `network`."""
        return (f"kind: {self.kind}", *self.settings)


_RESIDUAL = ("strides: [1, 2, 2, 2]", "residual: true", "deep_supervision: 1")

# What scanners differ in, beside the rotation, scaling, noise and intensities of `data.augment`.
TRANSFORMS = ("{kind: blur}", "{kind: contrast}", "{kind: low_resolution}", "{kind: gamma}")

# From the cheapest step to the dearest, each with three halvings, as patches are multiples of 8.
NETWORKS = (
    Network("unet", ("channels: [16, 32, 64, 128]",), "a U-Net of 16 to 128 features", 0.003),
    Network("unet", ("channels: [32, 64, 128, 256]",), "a U-Net of 32 to 256 features"),
    Network(
        "dynunet",
        ("filters: [16, 32, 64, 128]", *_RESIDUAL),
        "a residual nnU-Net of 16 to 128 features with deep supervision",
    ),
    Network(
        "dynunet",
        ("filters: [32, 64, 128, 256]", *_RESIDUAL),
        "a residual nnU-Net of 32 to 256 features with deep supervision",
    ),
)


@dataclass(frozen=True)
class Timing:
    """What a machine takes, in seconds: a training step of BATCH patches, one more patch to augment, and the
    prediction of a window of the patch's size.
    """

    step_s: float
    item_s: float
    window_s: float


@dataclass(frozen=True)
class Cases:
    """How many cases the hospitals have: of each that trains, to train; to validate; to test anywhere."""

    train: tuple[int, ...]
    val: int
    test: int


@dataclass(frozen=True)
class Recipe:
    """What the draft says of a segmentation's training; `reasons` are comments of the study file.

    voxels: the most voxels of a patch.  compared: whether the study also trains the hospitals' own models and
    the pooled one.
    """

    network: Network
    voxels: int
    rounds: int
    epochs: int
    compared: bool = True
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What a timing was measured on: its words, and the timing of each of NETWORKS on a patch."""

    words: str
    patch: tuple[int, int, int]
    timings: tuple[Timing, ...]


def parse_budget(text: str) -> float:
    """Return the seconds of a budget such as 30m, 2h or 1d.

    Raises:
        StudyError: if it is none.

    >>> parse_budget("30m"), parse_budget("1.5h"), parse_budget("1d")
    (1800.0, 5400.0, 86400.0)
    """
    found = _BUDGET.fullmatch(text.strip().lower())
    if found is None or not float(found[1]):
        raise StudyError(f"--budget: found '{text}', expected a time such as 30m, 2h or 1d")
    return float(found[1]) * _UNIT_S[found[2]]


def default_recipe(voxels: int) -> Recipe:
    """Return the recipe without a budget."""
    return Recipe(NETWORKS[0], voxels, rounds=30, epochs=2)


@dataclass(frozen=True)
class _Share:
    """Where the seconds of a plan go."""

    epoch_s: float
    validation_s: float
    measuring_s: float
    budget_s: float

    @property
    def epochs(self) -> int:
        """Local epochs per round, as few as validation's share allows."""
        enough = math.ceil(self.validation_s * (1 - MAX_VALIDATION) / (MAX_VALIDATION * self.epoch_s))
        return min(max(2, enough), MAX_LOCAL_EPOCHS)

    @property
    def round_s(self) -> float:
        return self.epochs * self.epoch_s + self.validation_s

    @property
    def rounds(self) -> int:
        """The rounds that the budget buys."""
        left = (1 - RESERVE) * self.budget_s - self.measuring_s - self.validation_s
        return min(math.floor(left / self.round_s), max(1, MAX_VISITS // self.epochs))

    @property
    def visits(self) -> int:
        return self.rounds * self.epochs

    @property
    def total_s(self) -> float:
        rest = self.measuring_s + self.validation_s + self.rounds * self.round_s
        return rest / (1 - RESERVE)


def plan_recipe(
    budget_s: float, cases: Cases, size: Sequence[int], machine: Machine, voxels: int, passes: int
) -> Recipe:
    """Return the recipe that a budget buys on this machine, which trains all hospitals one after the other.

    Args:
        budget_s: the seconds of the whole run, from the first round to the report.
        cases: the hospitals' cases.
        size: the voxels of the median image on the study's grid.
        machine: what was measured.
        voxels: the most voxels of a patch, of which the timing was.
        passes: how often each test case is predicted: per model and perturbation.

    Raises:
        StudyError: if it buys no round of the cheapest network, or there is nothing to train on.
    """
    if not sum(cases.train):
        raise StudyError(
            "--budget: no hospital has a training case; `medfed check` says which split each is in"
        )
    shares = [_share(budget_s, cases, size, machine, timing, passes) for timing in machine.timings]
    bought = [number for number, share in enumerate(shares) if share.visits >= MIN_VISITS]
    chosen = max(bought, default=0)
    share = shares[chosen]
    if share.rounds < 1:
        least = (share.measuring_s + share.validation_s + share.round_s) / (1 - RESERVE)
        raise StudyError(
            f"--budget: {_words(budget_s)} buys no round on this machine: one takes {_words(share.round_s)}, "
            f"and measuring the model {_words(share.measuring_s)}; give at least {_words(least)}"
        )
    recipe = Recipe(
        NETWORKS[chosen],
        voxels,
        share.rounds,
        share.epochs,
        compared=False,
    )
    return replace(recipe, reasons=_reasons(recipe, share, machine))


def _share(
    budget_s: float, cases: Cases, size: Sequence[int], machine: Machine, timing: Timing, passes: int
) -> _Share:
    steps = sum(-(-number // BATCH) for number in cases.train)
    case_s = windows(size, machine.patch) * timing.window_s
    return _Share(
        epoch_s=steps * timing.step_s + sum(cases.train) * timing.item_s,
        validation_s=cases.val * case_s,
        measuring_s=cases.test * passes * (case_s + METRICS_S * math.prod(size)),
        budget_s=budget_s,
    )


def windows(size: Sequence[int], patch: Sequence[int]) -> int:
    """Return how many windows of a patch cover an image, as MONAI's sliding window lays them.

    >>> windows((40, 40, 40), (40, 40, 40)), windows((41, 40, 40), (40, 40, 40)), windows((9, 9), (4, 9))
    (1, 2, 3)
    """
    count = 1
    for side, want in zip(size, patch, strict=True):
        step = max(int(want * (1 - OVERLAP)), 1)
        count *= 1 if side <= want else math.ceil((side - want) / step) + 1
    return count


def _reasons(recipe: Recipe, share: _Share, machine: Machine) -> tuple[str, ...]:
    reasons = [
        f"planned for {_words(share.budget_s)} on this machine ({machine.words}): {recipe.network.words},",
        f"{recipe.rounds} rounds of {recipe.epochs} epochs, about {_words(share.total_s)} in all, of which "
        f"measuring takes {_words(share.measuring_s)}.",
        f"Each training case is seen {share.visits} times. Hospitals with machines of their own train side",
        "by side and take less. The models to compare with are switched off: each takes as long again.",
    ]
    if share.visits < MIN_VISITS:
        reasons.append(
            f"More time helps: below {MIN_VISITS} visits of each case a network is still learning."
        )
    return tuple(reasons)


def _words(seconds: float) -> str:
    """Return '45 s', '12 min', '3.5 h'.

    >>> _words(45), _words(734), _words(12600)
    ('45 s', '12 min', '3.5 h')
    """
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def cases_of(splits: Mapping[str, Mapping[str, int]], held_out: Sequence[str]) -> Cases:
    """Return the numbers of cases from each hospital's splits; of one that is held out all are tested."""
    train = tuple(counts.get("train", 0) for site, counts in splits.items() if site not in held_out)
    val = sum(counts.get("val", 0) for site, counts in splits.items() if site not in held_out)
    tested = (
        sum(counts.values()) if site in held_out else counts.get("test", 0) for site, counts in splits.items()
    )
    return Cases(train, val, sum(tested))
