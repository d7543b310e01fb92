"""What a search tries next, and which trial it stops: Optuna's tree-structured Parzen estimator, and ASHA.

Bergstra, Bardenet, Bengio, Kegl, NeurIPS 2011 (TPE); Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt,
Recht, Talwalkar, MLSys 2020, arXiv:1810.05934 (ASHA); Akiba, Sano, Yanase, Ohta, Koyama, KDD 2019,
arXiv:1907.10902 (Optuna). Trials run one after the other, so that ASHA stops a trial at a rung for good.

Optuna's study is built anew from the record before each trial, and its sampler is seeded by the study's seed
and the trial's number: a search that was interrupted proposes what one that was not does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec

from medfed.errors import StudyError
from medfed.runs.facts import SearchFacts, TrialFacts
from medfed.study.canonical import to_dict
from medfed.study.search import Range, Search
from medfed.study.study import Study

if TYPE_CHECKING:
    import optuna

# Floating-point settings are drawn with so many significant digits; what a study or a list gives is kept.
DIGITS = 4

# Seeds of numpy's generators are below it.
SEEDS = 2**32


class Stopped(Exception):
    """A trial that is not trained to its end; the text says why."""


def require_optuna() -> None:
    """Check that the package optuna is installed.

    Raises:
        StudyError: with the command that installs it.
    """
    if find_spec("optuna") is None:
        raise StudyError(
            "--search: needs the package optuna, which is not installed here; run "
            '`pip install "medfed[search]"`'
        )


@dataclass(frozen=True)
class Proposal:
    """The settings of one trial, and Optuna's view of it.

    values: by key, a number or the position in the key's list.  overrides: the same as `--set` takes them.
    rounds: of a trial that is trained to its end.
    """

    values: Mapping[str, int | float]
    overrides: tuple[str, ...]
    rounds: int
    trial: optuna.Trial

    def report(self, score: float, step: int) -> None:
        """Take in the score of the model after `step` rounds."""
        self.trial.report(score, step)

    def check(self, step: int) -> None:
        """Raise if the trial is not among the best that came as far, and has half of its rounds to go.

        Raises:
            Stopped: naming the round.
        """
        if 2 * step <= self.rounds and self.trial.should_prune():
            raise Stopped(f"after round {step} it was not among the best of the trials that came as far")

    def rungs(self) -> dict[str, float]:
        """Return the scores with which the trial came to each rung, as Optuna calls them."""
        attributes = self.trial.storage.get_trial_system_attrs(self.trial._trial_id)
        return {name: value for name, value in attributes.items() if isinstance(value, float)}


def propose(search: Search, record: SearchFacts, study: Study, number: int) -> Proposal:
    """Return the next trial of a search; the first has the study's own settings, if the space has them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(values) for key, values in search.space.items()}
    asked = optuna.create_study(
        direction="maximize" if record.better == "higher" else "minimize",
        sampler=optuna.samplers.TPESampler(seed=(study.seed * 1_000_003 + number) % SEEDS),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=record.least, reduction_factor=record.reduction, min_early_stopping_rate=0
        ),
    )
    asked.add_trials([_former(trial, distributions) for trial in record.trials if trial.repeats is None])
    own = {} if record.trials else own_values(search, study)
    if own:
        asked.enqueue_trial(own)
    trial = asked.ask(distributions)
    values = own or {key: _rounded(search.space[key], value) for key, value in trial.params.items()}
    overrides = tuple(f"{key}={_text(search.space[key], value)}" for key, value in values.items())
    return Proposal(values, overrides, study.train.rounds, trial)


def own_values(search: Search, study: Study) -> dict[str, int | float]:
    """Return the study's own settings as values of the space; empty if one is not in it."""
    own: dict[str, int | float] = {}
    plain = to_dict(study)
    for key, values in search.space.items():
        found: Any = plain
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(values, Range):
            if isinstance(found, bool) or not isinstance(found, (int, float)):
                return {}
            if not values.low <= found <= values.high or (values.is_whole and found != int(found)):
                return {}
            own[key] = int(found) if values.is_whole else found
        else:
            # As plain values, in which a list is a list, and 1 is 1.0.
            known = msgspec.json.decode(msgspec.json.encode(values))
            own_one = msgspec.json.decode(msgspec.json.encode(found))
            if own_one not in known:
                return {}
            own[key] = known.index(own_one)
    return own


def _distribution(values: Range | tuple[Any, ...]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(range(len(values)))
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _former(
    trial: TrialFacts, distributions: dict[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial:
    """Return a trial of the record as Optuna knows it."""
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    return create_trial(
        state=states[trial.state],
        value=trial.score if trial.state == "finished" else None,
        params=dict(trial.values),
        distributions=distributions,
        intermediate_values=dict(trial.scores),
        system_attrs=dict(trial.rungs),
    )


def _rounded(values: Range | tuple[Any, ...], value: int | float) -> int | float:
    """Return a drawn number with few digits, but not beyond the ends of its range."""
    if isinstance(value, int) or not isinstance(values, Range):
        return value
    return float(min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high))


def _text(values: Range | tuple[Any, ...], value: int | float) -> str:
    """Return a value of the space as `--set` takes it."""
    return _as_yaml(value if isinstance(values, Range) else values[int(value)])


def _as_yaml(value: Any) -> str:
    """Return a plain value as YAML on one line, numbers with all their digits and without an exponent.

    YAML 1.1 reads 1e-07 as a text.
    """
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_as_yaml(key)}: {_as_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return msgspec.json.encode(value).decode()
