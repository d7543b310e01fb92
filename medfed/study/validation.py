"""What the parts of a study demand of each other, checked before anything runs.

Each check yields its problems as sentences that begin with the key concerned; the first one is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from medfed.aggregation import Rule
from medfed.data.batch_needs import PATCH_NEEDS, WHOLE_IMAGE_NEEDS
from medfed.data.class_names import ClassNames, in_words
from medfed.data.datamodules import DataModule
from medfed.data.settings import Images, Table
from medfed.errors import DataError, StudyError
from medfed.registry import kind_of, kinds
from medfed.runs.trackers import missing_packages
from medfed.study._explain import nearest
from medfed.study.averaging import averages, averaging_problems
from medfed.study.joining import joining_refusals
from medfed.study.last_rounds import last_rounds_problems
from medfed.study.network import network_for
from medfed.study.own_hub import needs_own_hub
from medfed.study.postprocessing import postprocessing_problems
from medfed.study.study import Study
from medfed.study.trees import tree_problems
from medfed.wire.signing import BROKER, HUB


def validate(study: Study, name: str) -> None:
    """Check that the parts of a study fit each other; `name` is the file's name in errors.

    Raises:
        StudyError: naming the key, what does not fit, and what to change.
    """
    for check in _CHECKS:
        for problem in check(study):
            raise StudyError(f"{name}: {problem}")


def _site_names(study: Study) -> Iterator[str]:
    if not study.sites:
        yield (
            "sites: names no site; a study needs at least one, such as\n  sites:\n    north: ../data/north"
        )
    for site in sorted({*study.sites, *study.held_out}):
        if site.lower() in (HUB, BROKER):
            yield f"sites: '{site}' is the name of the {site.lower()} itself; give the hospital another name"
    for site in sorted(set(study.sites) & set(study.held_out)):
        yield f"'{site}' is in sites and in held_out; a hospital that trains is not held out"


def _packages(study: Study) -> Iterator[str]:
    for key, part in (("privacy", study.privacy), ("network", study.network)):
        for package, extra in part.packages.items():
            if find_spec(package) is None:
                yield (
                    f"{key}.kind: '{kind_of(part)}' needs the package {package}, which is not installed "
                    f'here; run `pip install "{extra}"`'
                )


def _simulation(study: Study) -> Iterator[str]:
    if study.simulation.engine == "threads" and study.simulation.workers > 1:
        yield (
            f"simulation.workers: is {study.simulation.workers}, and engine 'threads' trains one hospital "
            "after the other; add engine: processes, or leave workers out"
        )
    if study.simulation.engine == "ray":
        yield from _ray(study.simulation.address)
    elif (study.simulation.address, study.simulation.gpus) != ("auto", "share"):
        yield (
            f"simulation: address and gpus are of the engine ray, and engine is '{study.simulation.engine}'; "
            "add engine: ray, or leave them out"
        )


def _ray(address: str) -> Iterator[str]:
    if find_spec("ray") is None:
        yield (
            "simulation.engine: 'ray' needs the package ray, which is not installed here; run "
            '`pip install "medfed[ray]"`'
        )
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and (not host or "/" in host or not port.isdecimal()):
        yield (
            f"simulation.address: is {address!r}, expected auto, local or host:port of a Ray cluster's head, "
            "such as 10.0.0.7:6379; a ray:// address is of Ray's client, which is not used"
        )


def _trackers(study: Study) -> Iterator[str]:
    yield from missing_packages(study.trackers)


def _class_names(study: Study) -> Iterator[str]:
    classes = tuple(getattr(study.task, "classes", ()))
    if not classes:
        return
    try:
        ClassNames(classes)
        for site, override in study.site_overrides.items():
            unknown = ClassNames(classes, in_words(override.classes)).unknown
            if unknown:
                yield (
                    f"site_overrides: {site}: classes: {unknown} words are mapped to what is no class of the "
                    f"study; there are {', '.join(classes)}, and background for what is to be left out"
                )
    except DataError as error:
        yield str(error)


def _network_and_data(study: Study) -> Iterator[str]:
    task, needs = kind_of(study.task), study.task.needs
    network_needs = study.task.network_needs or needs
    if network_needs not in study.network.serves:
        suitable = _kinds_that("networks", lambda network: network_needs in network.serves)
        yield (
            f"network.kind: '{kind_of(study.network)}' does not serve task '{task}'; there are "
            f"{', '.join(suitable)}"
        )
    if isinstance(study.data, Images):
        yield from _dimensions(study, study.data)
        yield from _table_beside_images(study, study.data)
    if isinstance(study.data, DataModule):
        if needs not in study.data.serves:
            yield (
                f"data.kind: '{kind_of(study.data)}' serves {', '.join(study.data.serves)}, and task "
                f"'{task}' needs '{needs}'; take another task or data module"
            )
        return
    expected: type[Images | Table] = Table if needs in ("table", "survival") else Images
    if not isinstance(study.data, expected):
        yield f"data.kind: task '{task}' learns from '{_tag(expected)}', found '{_tag(type(study.data))}'"


def _dimensions(study: Study, data: Images) -> Iterator[str]:
    own = getattr(study.network, "spatial_dims", None)
    if own not in (None, data.spatial_dims):
        yield (
            f"network.spatial_dims: found {own}, and data.spatial_dims is {data.spatial_dims}; leave out the "
            "network's, or set both to the same number"
        )
    elif data.plan == "given":  # otherwise the patch is not known yet
        try:
            network_for(study).check_size(data.patch)
        except StudyError as error:
            yield f"data.patch: {error}"
        yield from study.task.image_problems(data.patch, data.balance)
    if data.slices is not None and study.task.needs not in PATCH_NEEDS:
        yield (
            f"data.slices: task '{kind_of(study.task)}' learns from whole images, and the slices of a volume "
            "are for segmentation; leave slices out for images of one plane, or set data.spatial_dims to 3"
        )


def _mirroring(study: Study) -> Iterator[str]:
    """Check that a network that predicts mirrored images is trained on such images, too."""
    mirror: tuple[str, ...] = getattr(study.task, "mirror", ())
    if not mirror or not isinstance(study.data, Images):
        if mirror:
            yield "task.mirror: only images of data.kind 'images' have known axes; leave it out"
        return
    augment, axes = study.data.augment, study.data.patient_axes
    trained = augment.flip_axes if augment != "none" and augment.flip else ()
    for axis in mirror:
        if axis not in axes:
            yield f"task.mirror: '{axis}' is no axis of the images, which lie along {', '.join(axes)}"
        elif axis not in trained:
            yield (
                f"task.mirror: predicts images mirrored along '{axis}', which training never sees; add "
                f"'{axis}' to data.augment.flip_axes with flip above 0, or remove it from mirror"
            )


def _table_beside_images(study: Study, data: Images) -> Iterator[str]:
    if data.table is None:
        return
    if study.task.needs not in WHOLE_IMAGE_NEEDS:
        yield (
            f"data.table: task '{kind_of(study.task)}' does not learn from columns beside images; leave "
            "the table "
            "out, or take task classify or multilabel"
        )
    predicted = {name.lower() for name in getattr(study.task, "classes", ())}
    predicted |= {data.findings.column.lower()} if data.findings is not None else set()
    answers = sorted(name for name in data.table.features if name.lower() in {*predicted, "target"})
    if answers:
        yield (
            f"data.table: features lists '{answers[0]}', which the study predicts; a model would only "
            "copy it; "
            "remove it from features"
        )
    if not study.network.head:
        yield (
            f"data.table: network '{kind_of(study.network)}' names no last layer (`head`), before which the "
            "columns could stand beside the image's features; take another network, such as resnet"
        )


def _privacy(study: Study) -> Iterator[str]:
    yield from study.privacy.objections(study)
    privacy, rule = kind_of(study.privacy), kind_of(study.rule)
    for scalar in study.rule.needs_scalars:
        if scalar not in study.privacy.filter_scalars({scalar: 0.0}):
            yield (
                f"rule.kind: '{rule}' needs each site's '{scalar}', which privacy '{privacy}' does not let a "
                "site send; take a rule that needs no such number, such as fedavg"
            )
    if not study.privacy.reveals_each_update:
        yield from _hidden_updates(study)
    yield from _too_few_sites(study, f"privacy.kind: '{privacy}'", study.privacy.min_sites)


def _hidden_updates(study: Study) -> Iterator[str]:
    """Check a study whose hub sees only the sum of the updates."""
    privacy, rule, local = kind_of(study.privacy), kind_of(study.rule), study.train.local
    if not study.rule.supports_secure_aggregation:
        suitable = _kinds_that("aggregation", _supports_secure_aggregation)
        yield (
            f"rule.kind: '{rule}' compares the sites' single updates, which privacy '{privacy}' hides from "
            f"the hub; take a rule that needs only their sum, such as {', '.join(suitable)}"
        )
    if local is not None and local.sends:
        yield (
            f"train.local.kind: '{kind_of(local)}' sends more than an update, which privacy '{privacy}' does "
            "not sum; take another one, or none"
        )


def _kinds_that(folder: str, test: Callable[[Any], bool]) -> list[str]:
    """Return the names of a registry's kinds for which `test` is true."""
    return [name for name, record in kinds(folder).items() if test(record)]


def _supports_secure_aggregation(rule: type[Rule]) -> bool:
    try:
        return rule().supports_secure_aggregation
    except TypeError:  # it has settings without a default
        return False


def _other_hub(study: Study) -> Iterator[str]:
    """Check a study of a network that others lead, whose hub merges by plain FedAvg."""
    if study.exchange.own_hub:
        return
    exchange, rule = kind_of(study.exchange), kind_of(study.rule)
    for problem in needs_own_hub(study.privacy, study.compress, study.train.local):
        yield f"exchange.kind: '{exchange}' takes part in a network that others lead. {problem}"
    if rule != "fedavg":
        yield f"rule.kind: '{rule}' is medfed's hub's; the network of exchange '{exchange}' merges by fedavg"
    if study.train.keep != "last" or study.train.patience is not None:
        yield (
            f"train.keep, train.patience: the network of exchange '{exchange}' ends with its last round's "
            "model; leave both out"
        )


def _rule(study: Study) -> Iterator[str]:
    rule = kind_of(study.rule)
    sent = study.train.local.sends if study.train.local is not None else ()
    for group in study.rule.needs_groups:
        if group not in sent:
            suitable = [*_kinds_that("local_training", lambda method: group in method.sends), "..."]  # noqa: B023
            yield (
                f"rule.kind: '{rule}' merges the group '{group}', which no site of this study sends; add "
                f"train.local: {{kind: {suitable[0]}}}"
            )
    if study.rule.asynchronous:
        yield from _asynchronous(study)
    if study.rule.max_sites is None:
        yield from _too_few_sites(study, f"rule.kind: '{rule}'", study.rule.min_sites)


def _description(study: Study) -> Iterator[str]:
    """Yield what is wrong with what is asked of the hospitals before training."""
    if study.describe is None:
        return
    if not study.exchange.own_hub:
        yield (
            f"describe: the network of exchange '{kind_of(study.exchange)}' has a hub that sums no "
            "statistics; leave it out"
        )
    if (given := study.describe.privacy) is not None:
        yield from _too_few_sites(study, f"describe.privacy.kind: '{kind_of(given)}'", given.min_sites)
    if study.describe.noise is not None:
        yield from _noised_description(study)


def _noised_description(study: Study) -> Iterator[str]:
    """Yield why statistics cannot be noised here, or do not serve what they are asked for."""
    if find_spec("opacus") is None:
        yield (
            "describe.noise: needs the package opacus, which counts epsilon and is not installed here; run "
            '`pip install "medfed[privacy]"`'
        )
    beside = study.data.table if isinstance(study.data, Images) else None
    for key, part in (("data.plan", study.data), ("data.table.plan", beside)):
        if getattr(part, "plan", "given") != "given":
            yield (
                f"{key}: is made of means, spreads and intensities, which are left out under describe.noise; "
                "give the settings in the study, or describe it without noise"
            )


def _too_few_sites(study: Study, kind: str, required: int) -> Iterator[str]:
    if required > study.minimum:
        yield (
            f"{kind} with these settings needs {required} sites per round, but the study continues with "
            f"{study.minimum}; set sampling.minimum to at least {required}"
        )


def _asynchronous(study: Study) -> Iterator[str]:
    rule = kind_of(study.rule)
    if not study.privacy.reveals_each_update:
        yield (
            f"rule.kind: '{rule}' merges updates of different rounds, which privacy "
            f"'{kind_of(study.privacy)}' cannot sum secretly; take another rule, such as fedavg"
        )
    if study.sampling.fraction < 1:
        yield f"sampling.fraction: with rule '{rule}' every site trains all the time; leave it at 1"


def _compression(study: Study) -> Iterator[str]:
    if study.compress and not study.privacy.reveals_each_update:
        yield (
            f"compress: privacy '{kind_of(study.privacy)}' masks each update so that only the sum of all can "
            "be read, and rounded updates do not add up to it; leave compress out, or take another privacy"
        )
    for stage, following in zip(study.compress, study.compress[1:], strict=False):
        if not stage.chainable:
            yield (
                f"compress: '{kind_of(stage)}' leaves no floats that '{kind_of(following)}' could shorten; "
                "make it the last"
            )


def _local_training(study: Study) -> Iterator[str]:
    """Check that hub and sites do both halves of a method that has two."""
    rule, method = kind_of(study.rule), study.train.local
    name = kind_of(method) if method is not None else None
    if study.rule.needs_local and name not in study.rule.needs_local:
        yield (
            f"rule.kind: '{rule}' is the hub's half of a method whose other half trains the sites; add "
            f"train.local: {{kind: {study.rule.needs_local[0]}}}"
        )
    if method is not None and method.rules and rule not in method.rules:
        yield (
            f"train.local.kind: '{name}' is the sites' half of a method whose other half is the hub's; set "
            f"rule: {{kind: {method.rules[0]}}}, found '{rule}'"
        )


def _model_selection(study: Study) -> Iterator[str]:
    """Check that the hub can compare the rounds' models by the sites' scores."""
    train, score = study.train, study.task.main_score
    if train.keep == "last" and train.patience is None:
        return
    key = "train.keep: best" if train.keep == "best" else "train.patience"
    if study.rule.asynchronous or study.rule.max_sites == 1:
        yield (
            f"{key}: with rule '{kind_of(study.rule)}' each score is of another model, so rounds cannot "
            "be compared; leave it out, or take another rule, such as fedavg"
        )
    if study.sampling.fraction < 1:
        yield (
            f"{key}: with sampling.fraction {study.sampling.fraction:g} each round is scored at other sites, "
            "so rounds cannot be compared; set it to 1, or leave the key out"
        )
    if score not in study.privacy.filter_scalars({score: 0.0}):
        yield (
            f"{key}: needs each site's '{score}', which privacy '{kind_of(study.privacy)}' does not let a "
            "site send with these settings (privacy.scores); leave it out, or let the scores leave"
        )
    stays = study.keep_local or (train.local is not None and train.local.mixes_shared)
    if train.keep == "best" and stays:
        yield (
            "train.keep: best would join a former round's shared layers to what stays at each hospital, "
            "which is the last round's (train.keep_local, train.local); set keep to last"
        )


def _averaging(study: Study) -> Iterator[str]:
    """Check that a mean of the last rounds' models is one of comparable, whole models."""
    train = study.train
    if not averages(train.average):
        return
    for problem in averaging_problems(train.average, train.rounds, study.rule, study.privacy):
        yield f"train.average: {problem}"
    if train.keep == "best" or train.patience is not None:
        yield (
            "train.average: the study ends with the mean of its last rounds' models, and train.keep and "
            "train.patience end it with one round's; leave one of the two out"
        )
    if study.keep_local or (train.local is not None and train.local.mixes_shared):
        yield (
            "train.average would join a mean of shared layers to what stays at each hospital, which is the "
            "last round's (train.keep_local, train.local); leave it out"
        )
    if not study.exchange.own_hub:
        yield (
            f"train.average: the network of exchange '{kind_of(study.exchange)}' ends with its last round's "
            "model; leave it out"
        )


def _joining(study: Study) -> Iterator[str]:
    """Check that hospitals can join a study after its first round, if it allows that."""
    if not study.sampling.joining:
        return
    for problem in joining_refusals(study.privacy, study.rule):
        yield f"sampling.joining: {problem}"
    if not study.exchange.own_hub:
        yield (
            f"sampling.joining: who takes part in the network of exchange '{kind_of(study.exchange)}' is "
            "decided by its leader; leave joining out"
        )
    if study.train.keep == "best" or study.train.patience is not None:
        yield (
            "sampling.joining: after a hospital has joined, a round's mean score is one of other hospitals, "
            "so rounds cannot be compared; leave joining out, or train.keep and train.patience"
        )


def _search(study: Study) -> Iterator[str]:
    if study.search is not None:
        yield from study.search.problems(study.train.rounds)


def _site_references(study: Study) -> Iterator[str]:
    """Check that keys that name a site name one of the study's."""
    yield from _unknown_sites("site_overrides", study.site_overrides, {*study.sites, *study.held_out})
    labelled: dict[str, object] = getattr(study.task, "labelled", {})
    yield from _unknown_sites("task.labelled", labelled, {*study.sites, *study.held_out})


def _unknown_sites(key: str, names: Iterable[str], known: set[str]) -> Iterator[str]:
    for name in names:
        if name not in known:
            allowed = sorted(known)
            yield (
                f"{key}: '{name}' is not one of the study's sites{nearest(name, allowed)}; there are "
                f"{', '.join(allowed)}"
            )


def _quorum(study: Study) -> Iterator[str]:
    if study.minimum > len(study.sites):
        yield f"sampling.minimum: {study.minimum} sites must answer, but the study has {len(study.sites)}"


def _tag(record: type[Images | Table]) -> str:
    return str(record.__struct_config__.tag)


_CHECKS = (
    _packages,
    _site_names,
    _joining,
    _class_names,
    _network_and_data,
    tree_problems,
    _mirroring,
    _other_hub,
    _privacy,
    _description,
    _rule,
    _compression,
    _trackers,
    _simulation,
    _local_training,
    _model_selection,
    _search,
    _averaging,
    postprocessing_problems,
    last_rounds_problems,
    _site_references,
    _quorum,
)
