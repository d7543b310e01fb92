"""A hospital's policy on studies, and the description of a study for its privacy officer.

A policy is part of a hospital's own site file. `refusals` checks every study against it before training: an
empty list lets the study pass; otherwise each sentence names what the study asks for, what the policy allows,
and the key of the site file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from medfed.data.settings import Table, Unreadable
from medfed.errors import StudyError
from medfed.federation.egress import ROWS, Egress
from medfed.files import format_bytes
from medfed.pipeline.factory import egress_of
from medfed.registry import Kind, kind_of, kinds, package_of, summary
from medfed.runs.rounds import LABELS_NAMED, LEFT_OUT
from medfed.study.canonical import start_digest
from medfed.study.plugins import loaded_plugin
from medfed.study.study import Study
from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_text_template

Count = Annotated[int, Meta(ge=1)]

# The approximate bytes of name, offsets and header per tensor on the wire.
_TENSOR_OVERHEAD_BYTES = 120


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
        *_epsilon_refusals(policy, study),
        *_size_refusals(policy, study, cases),
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


def _epsilon_refusals(policy: Policy, study: Study) -> Iterator[str]:
    """Yield what is wrong with the study's epsilon and delta."""
    ceiling = policy.epsilon_ceiling
    if ceiling is None:
        return
    epsilon, delta = _study_epsilon(study), getattr(study.privacy, "delta", None)
    allows = f"this hospital allows at most {ceiling:g} (policy.epsilon_ceiling)"
    if epsilon is None:
        yield f"the study's privacy '{kind_of(study.privacy)}' states no epsilon, {allows}"
        return
    if epsilon > ceiling:
        yield f"the study's epsilon is {epsilon:g}, {allows}"
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

    `validated` is the hospital's number of validation patients: scores over fewer than the study's or the
    policy's `smallest_group` are withheld, as are all scores if no rows may leave.
    """
    smallest = max(study.evaluation.smallest_group, policy.smallest_group)
    if policy.rows == "none":
        return egress_of(study, smallest_group=None, withheld=("val",))
    too_few = validated is not None and validated < smallest
    return egress_of(study, smallest_group=smallest, withheld=("val",) if too_few else ())


# ---------------------------------------------------------------------------------------------- description


def describe(study: Study, digest: str) -> str:
    """Return the study as a page of plain text for a privacy officer, before the hospital agrees to it."""
    tensors, numbers, size = egress_size(study)
    page = render(
        Path(__file__).with_name("study_page.txt.jinja"),
        show=for_text_template,
        filters={"kind": kind_of, "summary": lambda one: summary(type(one)), "bytes": format_bytes},
        study=study,
        digest=digest,
        task=_task(study),
        data=_data(study),
        start=start_digest(study.start) if study.start else None,
        tensors=tensors,
        numbers=f"{numbers:,}",
        size=size,
        settings=_settings(study),
        beside=list(_beside(study)),
        results=_leaves(study, ROWS),
        bound=_bound(study),
        plugins=[loaded_plugin(name, str(one.digest)) for name, one in sorted(study.plugins.items())],
        packages=_other_packages(study),
    )
    return page.removesuffix("\n")


def _other_packages(study: Study) -> list[str]:
    """Return the installed packages beside medfed of which a study uses kinds, with their versions."""
    found = {package_of(kind) for kind in _kinds_of(study)}
    return sorted(package for package in found if package is not None)


def _kinds_of(value: object) -> Iterator[Kind]:
    """Yield the kinds that a study's records hold."""
    if isinstance(value, Kind):
        yield value
    if isinstance(value, msgspec.Struct):
        value = [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _kinds_of(one)


def _leaves(study: Study, scalar: str) -> bool:
    """Return whether a number of this name leaves under the study's privacy."""
    return bool(study.privacy.filter_scalars({scalar: 0.0}))


def _beside(study: Study) -> Iterator[str]:
    """Yield what leaves each round beside the network's weights, by what the study's privacy lets through."""
    yield {
        "sent": "the number of training cases behind them",
        "summed": "the number of training cases behind them, of which only all hospitals' sum can be read",
        "alike": "not the number of its training cases: every hospital counts the same",
    }[study.privacy.shows_examples]
    yield (
        "scores over all of its validation cases, one of each"
        if _leaves(study, f"val/{study.task.main_score or 'loss'}")
        else "no scores: they stay here"
    )
    if _leaves(study, LABELS_NAMED):
        yield "whether its labels name their structures, and whether its images have a size in mm"
    if _leaves(study, LEFT_OUT):
        yield "how many cases it left out because they cannot be used, by reason"


def _bound(study: Study) -> str:
    """Return how many hospitals must stay and how many may help a lying hub, for this study's own number."""
    colluding = getattr(study.privacy, "colluding", None)
    if colluding is None:
        return ""
    begin = max(1, math.ceil(study.sampling.fraction * len(study.sites) - 1e-9))
    return (
        f"with this study's {begin} hospitals per round, at least {study.privacy.required(begin)} must stay "
        f"to its end; at most {colluding} of the {begin} may help a hub that lies"
    )


def egress_size(study: Study) -> tuple[int, int, int]:
    """Return the tensors, numbers and bytes that leave a hospital per round, before protection."""
    import torch

    from medfed.models.networks._adapters import prepare_training
    from medfed.models.networks._shapes_only import ShapesOnly
    from medfed.study.network import untrained_network
    from medfed.wire.weights import shared_tensors

    # What nobody approved yet must not fill the memory.
    with torch.random.fork_rng(), ShapesOnly():
        network = untrained_network(study)
        prepare_training(network, None, study.train.lora, study.train.only)
    weights = shared_tensors(network, study.keep_local, trained_only=study.trained_only, shapes_only=True)
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
    unit = "pixels" if data.spatial_dims == 2 else "voxels"
    patch = "whole images" if data.patch is None else f"patches of {' x '.join(map(str, data.patch))} {unit}"
    count = f"{data.inputs} channel{'s' * (data.inputs > 1)}"
    names = f" ({', '.join(data.channel_names)})" if data.channel_names else ""
    pet = ", PET as SUV by body weight" if data.read.pet == "suv" else ""
    columns = f"; beside each image, of a table: {', '.join(data.table.features)}" if data.table else ""
    return f"images of {count}{names}{pet}, {patch}, on this hospital's machine{columns}"


def _settings(study: Study) -> list[tuple[str, object]]:
    plain = msgspec.to_builtins(study.privacy)
    return [(key, value) for key, value in plain.items() if key != "kind"]
