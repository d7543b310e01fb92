"""Which studies can train on validation patients in their last rounds (`train.last_rounds_on_all`)."""

from __future__ import annotations

from collections.abc import Iterator

from medfed.registry import kind_of
from medfed.study.study import Study


def last_rounds_sentence(study: Study) -> str:
    """Return who trains in a study's last rounds, for a log; '' if those are rounds like others."""
    first = study.on_all_from
    if first is None:
        return ""
    return (
        f"from round {first} on, each hospital trains on its validation patients, too; the model of round "
        f"{first - 1} is the last one with validation scores"
    )


def last_rounds_problems(study: Study) -> Iterator[str]:
    """Yield why validation patients cannot train in a study's last rounds."""
    train, key = study.train, "train.last_rounds_on_all"
    if not train.last_rounds_on_all:
        return
    if train.last_rounds_on_all > train.rounds:
        yield (
            f"{key}: is {train.last_rounds_on_all}, and the study has {train.rounds} rounds; give fewer than "
            "that"
        )
    for user in _users_of_validation(study):
        yield (
            f"{key}: validation patients train in the last rounds, and {user} needs patients who did not; "
            "leave one of the two out"
        )
    if study.privacy.trains_privately or study.privacy.planned(train.rounds).round_cost() is not None:
        yield (
            f"{key}: privacy '{kind_of(study.privacy)}' charges its ledger for training patients alone; "
            "leave one of the two out"
        )
    if study.rule.asynchronous:
        yield (
            f"{key}: with rule '{kind_of(study.rule)}' sites are in different rounds, of which none is the "
            "last for all; take another rule, such as fedavg, or leave the key out"
        )
    if study.network.grows_from_sums:
        yield (
            f"{key}: network '{kind_of(study.network)}' grows from sums over the same patients in every "
            "round; leave the key out"
        )
    if not study.exchange.own_hub:
        yield (
            f"{key}: the network of exchange '{kind_of(study.exchange)}' counts its own rounds, which may be "
            "others than the study's; leave the key out"
        )


def _users_of_validation(study: Study) -> Iterator[str]:
    """Yield what of a study is chosen or measured on validation patients after the last rounds begin."""
    train, evaluation = study.train, study.evaluation
    if train.keep == "best":
        yield "train.keep: best"
    if train.patience is not None:
        yield "train.patience"
    if evaluation.temperature:
        yield "evaluation.temperature"
    if evaluation.guarantee is not None:
        yield "evaluation.guarantee"
    if getattr(study.task, "postprocess", "none") == "auto":
        yield "task.postprocess: auto"
    if study.search is not None:
        yield "search"
