"""Which merged model a study ends with, and when it ends early: by the sites' validation scores.

Each site scores a merged model on its own validation cases, and its score comes with its next update. So the
hub knows the score of round r once the updates for round r + 1 are in. Two rounds are compared by their mean
scores over the sites that scored both, each site counting once: a mean over other sites is of other patients.
With fewer such sites than a round needs (`HubConfig.minimum`), a round is not judged: it neither becomes the
best nor counts for `patience`. Scores of test cases never reach the hub before the final model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import fsum, isfinite
from typing import Literal

from medfed.errors import StudyError
from medfed.runs.facts import ModelChoice
from medfed.runs.rounds import SiteResult
from medfed.study.averaging import Average, Ema, first_averaged


@dataclass(frozen=True)
class ModelSelection:
    """How a hub judges the merged models.

    score: the validation score, as the sites report it.  better: whether the higher or the lower is better.
    keep: whether the study ends with the last merged model or the best one.  patience: after how many judged
    rounds in a row without a better one the study ends; None never ends it early.  lowest, highest: a score
    outside of these is none, so that one site's nonsense decides nothing.

    Raises:
        StudyError: if the score is none of validation cases, or `patience` is below 1.
    """

    score: str = "val/loss"
    better: Literal["higher", "lower"] = "lower"
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    lowest: float | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        if not self.score.startswith("val/") or self.score.startswith("val/personal/"):
            raise StudyError(
                f"ModelSelection.score: '{self.score}' is no validation score of the merged model, such as "
                "val/dice; models are never chosen on test cases"
            )
        if self.better not in ("higher", "lower") or self.keep not in ("last", "best"):
            raise StudyError(
                f"ModelSelection: better is '{self.better}', expected 'higher' or 'lower'; keep is "
                f"'{self.keep}', expected 'last' or 'best'"
            )
        if self.patience is not None and self.patience < 1:
            raise StudyError(f"ModelSelection.patience is {self.patience}, expected 1 round or more, or None")

    def scores_in(self, results: Iterable[SiteResult]) -> dict[str, float]:
        """Return each site's score in a round's results; one that is missing or impossible is left out."""
        low = -float("inf") if self.lowest is None else self.lowest
        high = float("inf") if self.highest is None else self.highest
        return {
            result.site: float(value)
            for result in results
            if result.status in ("merged", "reported")
            and (value := result.scalars.get(self.score)) is not None
            and isfinite(value)
            and low <= value <= high
        }


@dataclass(frozen=True)
class Judged:
    """The best merged model so far: its round, its sites' scores, and how long none was better.

    `waited` counts the rounds judged since that were not better; `round` is 0 until one is judged.
    """

    round: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    waited: int = 0

    @property
    def mean(self) -> float | None:
        """The mean of the best model's scores, None without one."""
        return _mean(self.scores, self.scores) if self.round else None


NOT_JUDGED = Judged()


def judge(
    selection: ModelSelection, best: Judged, round: int, scores: Mapping[str, float], minimum: int
) -> Judged:
    """Return the best model so far, after the scores of this round's model; a tie leaves the earlier one.

    `minimum` is the fewest sites whose scores decide. The untrained model, of round 0, is never the best.
    """
    if round < 1 or round == best.round or len(scores) < max(1, minimum):
        return best
    if not best.round:
        return Judged(round, dict(scores))
    both = scores.keys() & best.scores.keys()
    if len(both) < max(1, minimum):
        return best
    gain = _mean(scores, both) - _mean(best.scores, both)
    is_better = gain > 0 if selection.better == "higher" else gain < 0
    return Judged(round, dict(scores)) if is_better else replace(best, waited=best.waited + 1)


def stops(selection: ModelSelection | None, best: Judged) -> bool:
    """Return whether the study ends now, because no model was better for `patience` rounds."""
    return selection is not None and selection.patience is not None and best.waited >= selection.patience


def unjudged(selection: ModelSelection, minimum: int) -> str:
    """Return a sentence for a study in which no model could be judged, so that the last one is its result."""
    return (
        f"no round was judged by '{selection.score}': in none did {minimum} or more sites send it, measured "
        "on the merged model. The last merged model is the result, and nothing was chosen. Log "
        f"'{selection.score}' in validation_step and validate after each merge, or leave the selection out; "
        "a study's hospital sends no score over fewer than `smallest_group` patients"
    )


def choice_of(selection: ModelSelection, best: Judged, merged: int, rounds: int) -> ModelChoice:
    """Return what a run's facts say of the choice, after `merged` of `rounds` rounds."""
    chosen = best.round if selection.keep == "best" and best.round else merged
    return ModelChoice(
        round=chosen,
        merged=merged,
        rounds=rounds,
        keep=selection.keep,
        score=selection.score,
        best=best.round,
        mean=best.mean,
        sites=sorted(best.scores),
        patience=selection.patience,
    )


def mean_of_rounds(average: Average, rounds: int) -> ModelChoice:
    """Return what a run's facts say of a study that ends with a mean of its rounds' models."""
    decay = average.decay if isinstance(average, Ema) else None
    count = rounds - first_averaged(average, rounds) + 1
    return ModelChoice(
        round=rounds, merged=rounds, rounds=rounds, keep="average", averaged=count, decay=decay
    )


def _mean(scores: Mapping[str, float], sites: Iterable[str]) -> float:
    """Return the mean over these sites, the same in whatever order they arrived."""
    values = [scores[site] for site in sites]
    return fsum(values) / len(values)
