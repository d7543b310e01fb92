"""What run.json says of a run: its study, its hospitals, its privacy, and the versions and hardware."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from medfed.files import percent_of

# The packages whose versions decide what a run computes.
_PACKAGES = ("medfed", "torch", "pytorch-lightning", "monai", "numpy", "nibabel", "pydicom", "torchmetrics")


class Mechanism(msgspec.Struct, frozen=True):
    """One sampled Gaussian mechanism and how many times it was applied."""

    noise_multiplier: float
    sample_rate: float
    steps: int


class SitePrivacy(msgspec.Struct, frozen=True):
    """What one site has spent of its privacy budget."""

    epsilon: float
    mechanisms: list[Mechanism]


class PrivacyFacts(msgspec.Struct, frozen=True):
    """A study's privacy mechanism; the fields after `notes` are written when a run with an epsilon ends."""

    kind: str = "none"
    notes: list[str] = []
    delta: float | UnsetType = UNSET
    unit: str | UnsetType = UNSET
    accountant: str | UnsetType = UNSET
    sites: dict[str, SitePrivacy] | UnsetType = UNSET


class Withdrawal(msgspec.Struct, frozen=True):
    """Which hospital withdrew, when its first update was merged (None: never), where training resumed."""

    site: str
    joined: int | None
    retrained_from: int
    study_before: str
    study: str
    when: str


class ModelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which model a run ended with, where its study sets `train.keep`, `train.patience` or `train.average`.

    round: whose model it is.  merged: how many rounds were merged, of `rounds` planned.  keep, patience: as
    the study says.  score: the validation score that decided.  best: the best round by it, 0 where none could
    be judged.  mean, sites: its mean, and over which sites; a hospital's own run knows neither.  averaged:
    the model is the mean of the models of so many last rounds.  decay: of a moving average over them.
    """

    round: int
    merged: int
    rounds: int
    keep: str = "last"
    score: str = ""
    best: int = 0
    mean: float | None = None
    sites: list[str] = []
    patience: int | None = None
    averaged: int = 1
    decay: float | None = None

    @property
    def by_validation(self) -> bool:
        """Whether scores of validation patients decided which model it is, or when training ended."""
        return self.keep != "average"

    @property
    def sentence(self) -> str:
        """The choice in words, for report, model card, log and audit log."""
        end = f"Training ended after {self.merged} of {self.rounds} rounds"
        if self.merged < self.rounds:
            end += f": the last {self.patience} that were judged were not better"
        if self.keep == "average":
            first = self.rounds - self.averaged + 1
            if self.decay is not None:
                return (
                    f"{end}; the model is the moving average of the models of rounds {first} to "
                    f"{self.rounds}, with a decay of {self.decay:g}."
                )
            return f"{end}; the model is the mean of the models of rounds {first} to {self.rounds}."
        if self.keep != "best":
            return f"{end}; the model is that of round {self.round}, the last one merged."
        if not self.best:
            return (
                f"{end}; the model is that of round {self.round}, the last one: too few hospitals sent "
                f"{self.score} for any round to be judged."
            )
        where = f" of {self.mean:.4g} over {', '.join(self.sites)}" if self.mean is not None else ""
        return (
            f"{end}; the model is that of round {self.round}, which has the best mean {self.score} on "
            f"validation patients{where}. No test patient took part in the choice."
        )


class FoldFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A cross-validation, whose results are of every patient by the model of the fold that held them out.

    of: the number of folds.  ensemble: why the folds' models have no mean, '' where the folder has it.
    measured: the hospitals at which the mean of the folds' models was measured.
    """

    of: int
    ensemble: str = ""
    measured: list[str] = []

    @property
    def sentences(self) -> list[str]:
        """What a reader of the report must know."""
        together = "`ensemble/` holds the mean of the folds' models, of which these values are not" + (
            f"; its own report is of {', '.join(self.measured)}." if self.measured else "."
        )
        if self.ensemble:
            together = f"The folds' models have no mean: {self.ensemble}."
        return [
            f"Cross-validation in {self.of} folds by patient, at all hospitals at once: each patient was "
            "measured by the model of the fold that held them out. The values are of "
            f"{self.of} trainings and of no single model; the groups `fold` show how far they differ.",
            "What ranks patients against each other (AUROC, c-index) or compares probabilities with outcomes "
            f"is here over the outputs of {self.of} models; the report of each fold, `fold-1/` and so on, is "
            "of one. Thresholds and temperatures chosen on validation patients are in these alone.",
            together,
        ]


class TrialFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One trial of a hyperparameter search.

    overrides: its settings, as `--set` takes them.  values: the same as numbers, or positions in a list.
    rounds: how many of the budget it took.  scores: of the model after each round that was judged.  score: of
    its final model, or of the last one judged.  rungs: Optuna's record of how far it came.  repeats: the
    former trial of the same settings, which was not trained again.
    """

    overrides: list[str]
    values: dict[str, int | float]
    state: Literal["finished", "stopped", "failed"]
    rounds: int
    why: str = ""
    scores: dict[int, float] = {}
    score: float | None = None
    rungs: dict[str, float] = {}
    repeats: int | None = None
    seconds: float = 0.0

    @property
    def sentence(self) -> str:
        """What became of it, for the terminal."""
        score = f"{self.score:.4g}" if self.score is not None else "no score"
        known = f", as trial {self.repeats + 1}" if self.repeats is not None else ""
        return f"{score} after {self.rounds} rounds{known}{f': {self.why}' if self.why else ''}"


class SearchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A hyperparameter search: what was searched, on what budget, every trial, and which was chosen.

    digest: of the study as it was given.  score, better: what decided, a mean over `sites`.  space: by key.
    budget: in rounds.  least, reduction: the rungs.  chosen: the trial's position, None until the end.
    """

    digest: str
    score: str
    better: Literal["higher", "lower"]
    space: dict[str, str]
    budget: int
    least: int
    reduction: int
    sites: list[str] = []
    trials: list[TrialFacts] = []
    chosen: int | None = None

    @property
    def spent(self) -> int:
        """How many rounds all trials took."""
        return sum(trial.rounds for trial in self.trials)

    @property
    def sentences(self) -> list[str]:
        """What a reader of the report must know."""
        if self.chosen is None:
            return []
        best, seconds = self.trials[self.chosen], sum(trial.seconds for trial in self.trials)
        tried = sum(trial.repeats is None for trial in self.trials)
        return [
            f"The settings {', '.join(best.overrides)} were chosen among {tried} in a search of {self.spent} "
            f"rounds and {seconds / 60:.1f} minutes, by the mean {self.score} on validation patients of "
            f"{', '.join(self.sites)}, {best.score:.4g}. No test patient took part in it.",
            f"That {self.score} is the best of {tried} and therefore flatters the choice; results on test "
            "patients do not.",
        ]


class StartFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that a run started from; start.csv in the run folder lists them tensor by tensor.

    file: its name.  share: of the network's numbers that were loaded.  bundle, licence: as a MONAI Bundle's
    metadata say, '' if they do not.  lines: what was loaded, what started anew and what was left, by block.
    """

    file: str
    sha256: str
    share: float
    bundle: str = ""
    licence: str = ""
    lines: list[str] = []

    @property
    def sentence(self) -> str:
        """The start in words, for report, model card and an exported bundle."""
        of = f", bundle {self.bundle}" if self.bundle else ""
        licence = f"licence {self.licence}" if self.licence else "no licence stated"
        return (
            f"Training started from {self.file}{of} (SHA-256 {self.sha256[:12]}, {licence}): "
            f"{percent_of(self.share)} of the network's numbers are from it."
        )


class PostprocessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which connected components are removed, as the hospitals' validation patients decided.

    rules: by structure, the volume in ml below which a component is removed, or `largest`.
    """

    rules: dict[str, float | str]
    sentence: str


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The content of run.json.

    `start`, `chosen`, `postprocess`, `folds`, `search`, `withdrawn`, `seconds` and `finished` may be absent.
    """

    study: str = ""
    digest: str = ""
    seed: int = 0
    task: str = ""
    classes: list[str] = []
    sites: list[str] = []
    held_out: list[str] = []
    # The hospital whose own part this is; '' at a hub or in a simulation, which know who trained.
    own: str = ""
    # Cases per site and split.
    cases: dict[str, dict[str, int]] = {}
    layouts: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    # Cases per site that were left out because they cannot be used, by reason.
    left_out: dict[str, dict[str, int]] = {}
    # The notes that a reader of the results must know, such as equal rows in two splits.
    warnings: dict[str, list[str]] = {}
    # Patients per site who were not measured because they trained the model.
    seen: dict[str, int] = {}
    privacy: PrivacyFacts = PrivacyFacts()
    # What the study started from, if not from random weights.
    start: StartFacts | UnsetType = UNSET
    # Models that could not be trained and sites that could not be measured, each with the reason.
    missing_models: dict[str, str] = {}
    unmeasured: dict[str, str] = {}
    started: str = ""
    versions: dict[str, str] = {}
    hardware: str = ""
    # The comparisons that the run was ever to make: one that disappoints may not go without a word.
    comparisons: list[str] = []
    # The lines that began and resumed the run, without folders; command.txt has them as they were typed.
    command: str = ""
    chosen: ModelChoice | UnsetType = UNSET
    # Where the study lets it be chosen (`task.postprocess: auto`).
    postprocess: PostprocessFacts | UnsetType = UNSET
    # The folder of a cross-validation, not those of its folds.
    folds: FoldFacts | UnsetType = UNSET
    # The search that the settings of this run were chosen in.
    search: SearchFacts | UnsetType = UNSET
    withdrawn: Withdrawal | UnsetType = UNSET
    seconds: float | UnsetType = UNSET
    finished: str | UnsetType = UNSET

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.finished is not UNSET


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def hardware(computing: str = "") -> str:
    """Return processor, cores and threads, GPU and operating system in one line.

    `computing` says with which threads the rounds are trained, if not with this process's.
    """
    import torch

    cores = f"{os.cpu_count()} cores, {computing or f'{torch.get_num_threads()} threads'}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {cores}, {device}, {platform.system()}"


def with_missing_model(facts: RunFacts, model: str, error: Exception) -> RunFacts:
    """Return the facts with the reason why a model could not be trained."""
    return msgspec.structs.replace(facts, missing_models={**facts.missing_models, model: str(error)})


def with_warning(facts: RunFacts, site: str, warning: str) -> RunFacts:
    """Return the facts with what a reader of a site's results must know; of an empty text, as they are."""
    known = facts.warnings.get(site, [])
    if not warning or warning in known:
        return facts
    return msgspec.structs.replace(facts, warnings={**facts.warnings, site: [*known, warning]})


def with_seen(facts: RunFacts, site: str, patients: int, warning: str) -> RunFacts:
    """Return the facts with how many of a site's patients trained, or why nobody knows."""
    known = [one for one in facts.warnings.get(site, []) if one != warning]
    return msgspec.structs.replace(
        facts, warnings={**facts.warnings, site: [*known, warning]}, seen={**facts.seen, site: patients}
    )


def with_unmeasured(facts: RunFacts, unmeasured: Mapping[str, str]) -> RunFacts:
    """Return the facts with the sites that could not be measured, each with its reason."""
    return msgspec.structs.replace(facts, unmeasured={**facts.unmeasured, **unmeasured})
