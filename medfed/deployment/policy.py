"""A hospital's policy on studies: which it takes part in, and what may leave.

A policy is part of a hospital's own site file. `refusals` checks every study against it before training: an
empty list lets the study pass; otherwise each sentence names what the study asks for, what the policy allows,
and the key of the site file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from medfed.data.settings import Unreadable
from medfed.errors import StudyError
from medfed.federation.egress import Egress
from medfed.pipeline.describing import needs_description, only_describes, protection_of
from medfed.pipeline.factory import egress_of
from medfed.pipeline.noised_statistics import deviation_of, noise_of, within_95
from medfed.pipeline.small_scores import PatientCounts, few_numbers, under_counts
from medfed.privacy._patient_noise import PatientNoise
from medfed.registry import kind_of, kinds
from medfed.study.study import Study

Count = Annotated[int, Meta(ge=1)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this hospital allows.

    tasks, networks: the kinds it accepts; null accepts any.  privacy: a study must use one of these kinds; an
    empty list requires none.  epsilon_ceiling: the largest epsilon that a study may spend on this hospital's
    patients, at `delta` or less; a study without differential privacy has no epsilon and is then refused.
    Null sets no ceiling.  max_rounds, max_local_epochs: the limits on rounds, and on epochs between two
    merges; null sets none.  minimum_cases: the hospital takes part only with at least this many training
    cases, since a model reveals more about each of a few.  rows: which evaluation results may leave: `none`,
    `aggregates` over groups, or rows of single `patients` (under salted ids).  smallest_group: results over
    groups of fewer patients than this never leave, whatever the study says.  unreadable: how many cases may
    be left out because they cannot be used (`skip`, `max_share`); with more, the hospital does not take part.
    statistics: whether counts and sums over its training patients may leave before training, where a study
    asks for them (`data.plan`, `describe`); no count is of fewer patients than `smallest_group`, or, under
    `describe.noise`, the noise hides so few.  similar_results: whether results whose patients are those of an
    earlier study's results but for fewer than `smallest_group` are sent with a warning (`warn`), or stay
    (`withhold`), since whoever has both reports can subtract them.
    """

    tasks: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    privacy: tuple[str, ...] = ()
    epsilon_ceiling: Annotated[float, Meta(gt=0)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    max_rounds: Count | None = None
    max_local_epochs: Count | None = None
    minimum_cases: Count = 1
    rows: Literal["none", "aggregates", "patients"] = "aggregates"
    smallest_group: Count = 10
    unreadable: Unreadable = Unreadable()
    statistics: bool = True
    similar_results: Literal["warn", "withhold"] = "warn"

    def __post_init__(self) -> None:
        # Reject unknown kinds: a typo would otherwise refuse every study, or silently require nothing.
        for key, names in (("tasks", self.tasks), ("networks", self.networks), ("privacy", self.privacy)):
            known = kinds(key)
            for name in names or ():
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1)
                    meant = f"; did you mean '{near[0]}'?" if near else ""
                    raise StudyError(
                        f"policy.{key}: there is no '{name}'{meant}; choose from {', '.join(known)}"
                    )


def refusals(policy: Policy, study: Study, cases: int) -> list[str]:
    """Return why this hospital refuses the study, one sentence per reason; an empty list if it does not.

    `cases` are the hospital's training cases.
    """
    return [
        *_kind_refusals(policy, study),
        *_tree_refusals(policy, study),
        *_epsilon_refusals(policy, study),
        *_size_refusals(policy, study, cases),
        *_statistics_refusals(policy, study),
    ]


def _kind_refusals(policy: Policy, study: Study) -> Iterator[str]:
    """Yield what is wrong with the kinds of task, network and privacy."""
    for what, component, accepted in (
        ("task", study.task, policy.tasks),
        ("network", study.network, policy.networks),
    ):
        if accepted is not None and kind_of(component) not in accepted:
            allowed, kind = _either(accepted) if accepted else "none", kind_of(component)
            yield f"the study's {what} is '{kind}', this hospital accepts {allowed} (policy.{what}s)"
    privacy = kind_of(study.privacy)
    if policy.privacy and privacy not in policy.privacy:
        required = _either(policy.privacy)
        yield f"the study's privacy is '{privacy}', this hospital requires {required} (policy.privacy)"


def _tree_refusals(policy: Policy, study: Study) -> Iterator[str]:
    """Yield why leaves of trees would be of fewer patients than this hospital lets a result be of."""
    fewest = getattr(study.rule, "min_patients", policy.smallest_group)
    if study.network.grows_from_sums and fewest < policy.smallest_group:
        yield (
            f"a leaf of the study's trees may be of {fewest} patients of all hospitals (rule.min_patients), "
            f"this hospital takes part with {policy.smallest_group} or more (policy.smallest_group)"
        )


def _epsilon_refusals(policy: Policy, study: Study) -> Iterator[str]:
    """Yield what is wrong with the study's epsilon and delta."""
    ceiling = policy.epsilon_ceiling
    if ceiling is None:
        return
    if only_describes(study):  # nothing is trained, and the statistics have an epsilon of their own
        return
    epsilon, delta = _study_epsilon(study), getattr(study.privacy, "delta", None)
    allows = f"this hospital allows at most {ceiling:g} (policy.epsilon_ceiling)"
    if epsilon is None:
        yield f"the study's privacy '{kind_of(study.privacy)}' states no epsilon, {allows}"
        return
    noise = noise_of(study)
    if epsilon > ceiling:
        yield f"the study's epsilon is {epsilon:g}, {allows}"
    elif noise is not None and noise.epsilon <= ceiling < epsilon + noise.epsilon:
        yield (
            f"the study's epsilon is {epsilon:g} and that of its statistics {noise.epsilon:g} "
            f"(describe.noise), together {epsilon + noise.epsilon:g}, {allows}"
        )
    if delta is not None and delta > policy.delta:
        yield (
            f"the study states its epsilon at a delta of {delta:g}, this hospital allows at most "
            f"{policy.delta:g} (policy.delta)"
        )


def _size_refusals(policy: Policy, study: Study, cases: int) -> Iterator[str]:
    """Yield which of the policy's numbers of rounds, epochs and cases the study breaks."""
    train = study.train
    for asked, limit, what, key in (
        (train.rounds, policy.max_rounds, "rounds", "max_rounds"),
        (train.epochs, policy.max_local_epochs, "epochs between two merges", "max_local_epochs"),
    ):
        if limit is not None and asked > limit:
            yield f"the study trains {asked} {what}, this hospital allows {limit} (policy.{key})"
    if cases < policy.minimum_cases:
        yield (
            f"this hospital has {cases} training cases for the study and takes part only with "
            f"{policy.minimum_cases} or more (policy.minimum_cases)"
        )


def _statistics_refusals(policy: Policy, study: Study) -> Iterator[str]:
    """Yield why the statistics that a study asks for beforehand may not leave."""
    if not needs_description(study):
        return
    asks = "the study asks for statistics of the training data (data.plan, describe)"
    if not policy.statistics:
        yield f"{asks}, this hospital sends none (policy.statistics)"
        return
    kind, noise = kind_of(protection_of(study)), noise_of(study)
    # As under dp_sgd, what leaves each hospital is private for each of its patients, whoever sees it.
    private = noise is not None and "dp_sgd" in policy.privacy
    if policy.privacy and kind not in policy.privacy and not private:
        yield (
            f"{asks} under '{kind}' (describe.privacy), this hospital requires {_either(policy.privacy)} "
            "(policy.privacy)"
        )
    if noise is not None:
        yield from _noise_refusals(policy, study, noise)
    elif policy.epsilon_ceiling is not None:
        yield (
            f"{asks} without an epsilon, this hospital allows at most {policy.epsilon_ceiling:g} "
            "(policy.epsilon_ceiling)"
        )


def _noise_refusals(policy: Policy, study: Study, noise: PatientNoise) -> Iterator[str]:
    """Yield why the noise on statistics is not enough for this hospital."""
    ceiling = policy.epsilon_ceiling
    if ceiling is not None and noise.epsilon > ceiling:
        yield (
            f"the epsilon of the study's statistics is {noise.epsilon:g} (describe.noise), this hospital "
            f"allows at most {ceiling:g} (policy.epsilon_ceiling)"
        )
    if ceiling is not None and noise.delta > policy.delta:
        yield (
            f"the study states the epsilon of its statistics at a delta of {noise.delta:g} (describe.noise), "
            f"this hospital allows at most {policy.delta:g} (policy.delta)"
        )
    # No count is withheld before the noise, so that the noise must hide the small ones.
    if (hides := within_95(deviation_of(study, noise))) < policy.smallest_group:
        yield (
            f"the noise on the study's statistics is ±{hides:.1f} patients (describe.noise), too little to "
            f"hide groups of fewer than {policy.smallest_group} (policy.smallest_group); a smaller epsilon "
            "would do"
        )


def _study_epsilon(study: Study) -> float | None:
    """Return the epsilon of a whole study: the stated one, or what its noise over all rounds amounts to."""
    stated = getattr(study.privacy, "epsilon", None)
    charge = study.privacy.round_cost() if stated is None else None
    if charge is None:
        return stated
    from medfed.privacy.accounting.accountant import MechanismSteps, epsilon

    rounds = MechanismSteps(charge.noise_multiplier, charge.sample_rate, study.train.rounds)
    return epsilon([rounds], study.privacy.delta, study.privacy.accountant)  # type: ignore[attr-defined]


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def egress_under(study: Study, policy: Policy, counts: PatientCounts | None = None) -> Egress:
    """Return the allow-list of what may leave a hospital, without what its policy withholds.

    `counts` are the hospital's patients: numbers over fewer than the study's or the policy's `smallest_group`
    are withheld, beside the counts that are sent, too; and all scores if no rows may leave.
    """
    smallest = max(study.evaluation.smallest_group, policy.smallest_group)
    if policy.rows == "none":
        egress = egress_of(study, smallest_group=None, withheld=("val",))
        return egress if counts is None else replace(egress, few=few_numbers(study, counts, smallest))
    egress = egress_of(study, smallest_group=smallest)
    return egress if counts is None else under_counts(egress, study, counts)
