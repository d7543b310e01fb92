"""A hospital's policy on studies, and the description of a study for its privacy officer.

A policy is part of a hospital's own site file. `refusals` checks every study against it before training: an
empty list lets the study pass; otherwise each sentence names what the study asks for, what the policy allows,
and the key of the site file.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from medfed.data.settings import Table
from medfed.errors import StudyError
from medfed.federation.egress import Egress
from medfed.files import format_bytes
from medfed.pipeline.factory import egress_of
from medfed.registry import kind_of, kinds, summary
from medfed.study.canonical import start_digest
from medfed.study.study import Study

Count = Annotated[int, Meta(ge=1)]

# The approximate bytes of name, offsets and header per tensor on the wire.
_TENSOR_OVERHEAD_BYTES = 120


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this hospital allows.

    tasks, networks: the kinds it accepts; null accepts any.  privacy: a study must use one of these kinds;
    an empty list requires none.  epsilon_ceiling: the largest epsilon that a study may spend on this
    hospital's patients, at `delta` or less; a study without differential privacy has no epsilon and is then
    refused.  Null sets no ceiling.  max_rounds, max_local_epochs: the limits on rounds, and on epochs between
    two merges; null sets none.  minimum_cases: the hospital takes part only with at least this many training
    cases, since a model reveals more about each of a few.
    rows: which evaluation results may leave: `none`, `aggregates` over groups, or rows of single `patients`
    (under salted ids).  smallest_group: results over groups of fewer patients than this never leave, whatever
    the study says.
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
    reasons = [
        *_kind("task", kind_of(study.task), "tasks", policy.tasks),
        *_kind("network", kind_of(study.network), "networks", policy.networks),
    ]
    privacy = kind_of(study.privacy)
    if policy.privacy and privacy not in policy.privacy:
        reasons.append(
            f"the study's privacy is '{privacy}', this hospital requires {_either(policy.privacy)} "
            "(policy.privacy)"
        )
    reasons += _epsilon(policy, study)
    if policy.max_rounds is not None and study.train.rounds > policy.max_rounds:
        reasons.append(
            f"the study trains {study.train.rounds} rounds, this hospital allows {policy.max_rounds} "
            f"(policy.max_rounds)"
        )
    if policy.max_local_epochs is not None and study.train.epochs > policy.max_local_epochs:
        reasons.append(
            f"the study trains {study.train.epochs} epochs between two merges, this hospital allows "
            f"{policy.max_local_epochs} (policy.max_local_epochs)"
        )
    if cases < policy.minimum_cases:
        reasons.append(
            f"this hospital has {cases} training cases for the study and takes part only with "
            f"{policy.minimum_cases} or more (policy.minimum_cases)"
        )
    return reasons


def _kind(what: str, kind: str, key: str, accepted: tuple[str, ...] | None) -> list[str]:
    if accepted is None or kind in accepted:
        return []
    allowed = _either(accepted) if accepted else "none"
    return [f"the study's {what} is '{kind}', this hospital accepts {allowed} (policy.{key})"]


def _epsilon(policy: Policy, study: Study) -> list[str]:
    if policy.epsilon_ceiling is None:
        return []
    epsilon, delta = _study_epsilon(study), getattr(study.privacy, "delta", None)
    if epsilon is None:
        return [
            f"the study's privacy '{kind_of(study.privacy)}' states no epsilon, this hospital allows at most "
            f"{policy.epsilon_ceiling:g} (policy.epsilon_ceiling)"
        ]
    reasons = []
    if epsilon > policy.epsilon_ceiling:
        reasons.append(
            f"the study's epsilon is {epsilon:g}, this hospital allows at most {policy.epsilon_ceiling:g} "
            f"(policy.epsilon_ceiling)"
        )
    if delta is not None and delta > policy.delta:
        reasons.append(
            f"the study states its epsilon at a delta of {delta:g}, this hospital allows at most "
            f"{policy.delta:g} (policy.delta)"
        )
    return reasons


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


def egress_under(study: Study, policy: Policy, validated: int | None = None) -> Egress:
    """Return the allow-list of what may leave a hospital, without what its policy withholds.

    `validated` is the hospital's number of validation cases: scores over fewer cases than the
    policy's `smallest_group` are withheld, as are all scores if no rows may leave.
    """
    withheld = policy.rows == "none" or (validated is not None and validated < policy.smallest_group)
    smallest = max(study.evaluation.smallest_group, policy.smallest_group)
    return egress_of(
        study,
        smallest_group=None if policy.rows == "none" else smallest,
        withheld=("val",) if withheld else (),
    )


# ---------------------------------------------------------------------------------------------- description


def describe(study: Study, digest: str) -> str:
    """Return the study as a page of plain text for a privacy officer, before the hospital agrees to it."""
    tensors, numbers, size = egress_size(study)
    train, local = study.train, study.local
    sent = (
        f"{numbers:,} numbers in {tensors} tensors, {format_bytes(size)}: the network's weights after this "
        f"hospital's training"
    )
    lines = [
        f"Study '{study.name}'",
        "",
        f"Training           {_task(study)}, by a network '{kind_of(study.network)}' of {numbers:,} numbers",
        f"Data               {_data(study)}",
        f"Hospitals          {', '.join(sorted(study.sites))}; at least {study.minimum} must answer a round",
        *(
            [f"Starts from        the checkpoint with SHA-256 {start_digest(study.start)}"]
            if study.start
            else []
        ),
        f"Duration           {train.rounds} rounds; in each, this hospital trains {train.epochs} epochs on "
        "its cases",
        "",
        "What leaves this hospital",
        f"  each round       {sent}",
        "                   the number of training cases behind them, and scores over all of its cases",
    ]
    if local is not None and local.sends:
        lines.append(
            f"                   as many numbers again for '{kind_of(local)}' ({', '.join(local.sends)})"
        )
    if train.keep_local:
        lines.append(
            f"                   these parts of the network stay here: {', '.join(train.keep_local)}"
        )
    lines += [
        f"  in all           at most {format_bytes(size * train.rounds)} of weights in {train.rounds} rounds",
        f"  after training   results over groups of at least {study.evaluation.smallest_group} patients;",
        "                   this hospital's policy may require larger groups, or forbid them",
        "  never            an image, a table row, a header, a name, a date or a file path",
        "",
        f"Protection         {kind_of(study.privacy)}: {summary(type(study.privacy))}",
        *(f"                   {key}: {value}" for key, value in _settings(study)),
        f"Who receives it    the hub, which merges it by '{kind_of(study.rule)}' into the model sent to "
        "every hospital",
        f"Sent through       {kind_of(study.exchange)}: {summary(type(study.exchange))}",
        "",
        f"Digest             {digest}",
        "The approval holds for this digest only: a study in which anything changes has another digest and "
        "needs a new approval.",
    ]
    return "\n".join(lines)


def egress_size(study: Study) -> tuple[int, int, int]:
    """Return the tensors, numbers and bytes that leave a hospital per round, before protection."""
    import torch

    from medfed.models.networks._adapters import prepare_training
    from medfed.wire.weights import weights_of

    with torch.random.fork_rng():
        inputs = study.data.inputs if isinstance(study.data, Table) else study.data.channels
        network = study.network.build(inputs, study.task.outputs, getattr(study.data, "patch", None))
        prepare_training(
            network, None, study.train.lora, study.train.only
        )  # only names and shapes count here
    weights = weights_of(network, study.keep_local, trained_only=study.trained_only)
    size = sum(tensor.numel() * tensor.element_size() + _TENSOR_OVERHEAD_BYTES for tensor in weights.values())
    return len(weights), sum(tensor.numel() for tensor in weights.values()), size


def _task(study: Study) -> str:
    classes = getattr(study.task, "classes", ())
    return f"{kind_of(study.task)} ({', '.join(classes)})" if classes else kind_of(study.task)


def _data(study: Study) -> str:
    data = study.data
    if isinstance(data, Table):
        targets = [name for name in (data.target, data.time, data.event) if name]
        return f"a table: {', '.join(data.features)}; predicted: {', '.join(targets)}"
    patch = "whole images" if data.patch is None else f"patches of {' x '.join(map(str, data.patch))} voxels"
    return (
        f"images of {data.channels} channel{'s' * (data.channels > 1)}, {patch}, on this hospital's machine"
    )


def _settings(study: Study) -> list[tuple[str, object]]:
    plain = msgspec.to_builtins(study.privacy)
    return [(key, value) for key, value in plain.items() if key != "kind"]
