"""DP-SGD: every step of a site's training is differentially private for each of its patients.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning with Differential Privacy, CCS 2016,
arXiv:1607.00133. Departures: the unit is a patient, not an image: everything that a patient contributes to
a step (volumes, visits, patches, slices) makes one gradient, which is clipped once; the noise multiplier is
derived from the target epsilon; noise and sampling come from the operating system's generator and never
from the study's seed.

`augmentations` is the augmentation multiplicity of De, Berrada, Hayes, Smith, Balle: Unlocking High-Accuracy
Differentially Private Image Classification through Scale, 2022, arXiv:2204.13650.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from medfed.errors import PrivacyError
from medfed.privacy._privacy import Positive, Privacy, Probability, Scores, not_covered, public_only
from medfed.privacy.accounting.accountant import Accountant
from medfed.registry import kind_of
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# The scalar with which a site reports what its training has spent; without it, training was not private.
EPSILON = "privacy/epsilon"

# All copies of a step's patients are read before the step, so a slip of the pen would fill the memory.
MAX_AUGMENTATIONS = 64


class DPSGD(Privacy, tag="dp_sgd", frozen=True):
    """Private training: nobody who sees the models, the hub included, can tell whether a patient took part.

    Protects each training patient against everyone outside the hospital, including the hub and the other
    hospitals, whatever else they know: with probability 1 - `delta`, the odds about a patient change by at
    most a factor e^`epsilon` over the whole study, at each site. It costs accuracy, more with fewer patients,
    and about doubles the time of a step.

    clip: the maximum norm of a patient's gradient.  accountant: `prv` is tighter, `rdp` older.  at_once: how
    many patients' gradients are in memory at a time, each as large as the model.  augmentations: a patient's
    gradient in a step is the mean over so many copies, each with its own patches and augmentation, before it
    is clipped; this costs no epsilon, and so many times the time.

    Not covered: validation and test patients' scores, which are withheld unless `scores: send`; the number of
    training cases, which is taken to be known; how long a step takes; a hospital's preprocessing, where it
    learns from its patients.
    """

    packages: ClassVar[Mapping[str, str]] = {"opacus": "medfed[privacy]"}
    trains_privately: ClassVar[bool] = True
    site_only: ClassVar[bool] = True
    replaces_batch_norm: ClassVar[bool] = True
    scalars: ClassVar[tuple[str, ...]] = (EPSILON,)

    epsilon: Positive = 8.0
    delta: Probability = 1e-5
    clip: Positive = 1.0
    accountant: Accountant = "prv"
    scores: Scores = "withhold"
    at_once: Annotated[int, Meta(ge=1)] = 8
    augmentations: Annotated[int, Meta(ge=1, le=MAX_AUGMENTATIONS)] = 1

    def objections(self, study: Any) -> Iterator[str]:
        if study.task.needs == "survival":
            yield (
                "privacy.kind: 'dp_sgd' needs a loss of each patient alone, and task 'survival' compares "
                "patients with each other; take privacy client_dp"
            )
        yield from _training_objections(study.train)
        if self.augmentations > 1 and not _draws_at_random(study.data, study.task.needs):
            yield (
                f"privacy.augmentations: {self.augmentations} copies of a patient would be equal, because "
                "this study draws no patches and no augmentation; set data.augment, or augmentations: 1"
            )
        yield from _unprivate_scaling(study.data, "data")
        yield from _unprivate_scaling(getattr(study.data, "table", None), "data.table")
        for name in study.rule.needs_scalars:
            if name not in public_only({name: 0.0}, self.scores):
                yield (
                    f"rule.kind: '{kind_of(study.rule)}' needs each site's '{name}', which is exact about "
                    "its patients and is withheld by dp_sgd; take another rule, such as fedavg"
                )

    def notes(self) -> tuple[str, ...]:
        return (
            f"each patient's part in training is hidden to epsilon {self.epsilon:g} at delta "
            f"{self.delta:g}, by dp_sgd",
            f"{not_covered(self.scores)}; so are case counts, which are sent",
        )

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return the update unchanged, because the noise was added in training.

        Raises:
            PrivacyError: if training was not private because the site's Trainer has no `PrivateTraining`.
        """
        if EPSILON not in update.scalars:
            raise PrivacyError(
                f"site '{update.site}', round {update.round}: the study asks for dp_sgd and this training "
                "was not private, so nothing is sent; give the Trainer a PrivateTraining callback "
                "(train_site does)"
            )
        return update

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        return public_only(scalars, self.scores)


def _draws_at_random(data: Any, needs: str) -> bool:
    """Return whether two copies of a training item can differ; a data module's own may."""
    if hasattr(data, "augment"):
        patches = needs in ("segment", "image") and (data.patch is not None or data.spatial_dims == 2)
        return patches or data.augment != "none" or bool(data.transforms)
    return not hasattr(data, "standardise")  # a table's rows are used as they are


def _training_objections(train: Any) -> Iterator[str]:
    if train.precision == "16-mixed":
        yield (
            "train.precision: 16-mixed scales the loss, and with it what dp_sgd has clipped and noised; "
            "take 32 or bf16-mixed"
        )
    if train.accumulate > 1:
        yield (
            f"train.accumulate: {train.accumulate} with dp_sgd: a step holds few patients at a time "
            "already (privacy.at_once); raise train.batch instead"
        )
    if train.local is not None and not train.local.is_data_free:
        yield (
            f"train.local.kind: '{kind_of(train.local)}' may use patients besides the noised gradients of "
            "dp_sgd; take fedprox or scaffold, or leave it out"
        )
    if getattr(train, "steps", None) is not None:
        yield (
            "train.steps: dp_sgd draws patients by chance, as many steps an epoch as bring each patient "
            "once on average; leave it out and set train.batch and train.epochs"
        )


def _unprivate_scaling(data: Any, key: str) -> Iterator[str]:
    """Object to inputs scaled by other patients: removing one patient would change all others' gradients.

    `key` is that of the settings in the study file.
    """
    if getattr(data, "plan", "given") != "given":
        yield (
            f"{key}.plan sends sums over each hospital's patients, which dp_sgd does not hide; write the "
            "settings into the study (given)"
        )
    standardise = getattr(data, "standardise", "none")
    if standardise in ("site", "combat"):
        yield (
            f"{key}.standardise: {standardise} scales each patient by the mean of all, which dp_sgd does not "
            "hide; take fixed with centre and scale, or none"
        )
    if getattr(data, "missing", "drop") == "median" and getattr(data, "standardise", None) is not None:
        yield (
            f"{key}.missing: median fills gaps from other patients' rows, which dp_sgd does not hide; "
            "take drop"
        )
