"""Build what a study describes: each hospital's data, the network, its LightningModule, a site's training."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytorch_lightning as pl
import torch

from medfed.data.cache_location import find_cache_location
from medfed.data.class_names import ClassNames, in_words
from medfed.data.datamodule import SiteDataModule
from medfed.data.layouts import Layout
from medfed.data.left_out import note_left_out
from medfed.data.own_data import OwnData
from medfed.data.refusals import REASONS
from medfed.data.screening import write_refused
from medfed.data.settings import Images, Unreadable, with_layout
from medfed.data.splits import simulated_secret
from medfed.data.whole_images import CheckSize
from medfed.errors import DataError, MedfedError, StudyError
from medfed.evaluation.inference import SiteCases
from medfed.evaluation.metrics import metric_of
from medfed.federation.config import HubConfig, SiteConfig
from medfed.federation.egress import TRAINING, Egress, with_personal
from medfed.federation.model_selection import ModelSelection
from medfed.federation.postprocessing import names_of
from medfed.models.networks import replace_batch_norms
from medfed.models.networks._adapters import prepare_training
from medfed.models.networks._image_and_table import ImageAndTable
from medfed.models.networks._vanishing import check_vanishing
from medfed.models.pretrained.load import LoadedStart
from medfed.models.tasks import Training
from medfed.registry import kind_of
from medfed.runs.rounds import IMAGES_IN_MM, LABELS_NAMED, LEFT_OUT, WITHHELD
from medfed.study.canonical import study_digest
from medfed.study.network import network_for, untrained_network
from medfed.study.study import Study


def folders_of(study: Study) -> dict[str, str]:
    """Return each hospital's data folder, which a run in one process must know.

    Raises:
        StudyError: if the study names no folder for a hospital.
    """
    places: dict[str, str] = {}
    for site, where in {**study.sites, **study.held_out}.items():
        if where is None:
            raise StudyError(
                f"site '{site}': the study names no folder for it, and this process trains every site; name "
                f"one (sites: {{{site}: path/to/folder}}), or across hospitals use `medfed hub` and `medfed "
                "train --site`"
            )
        places[site] = where
    return places


def hospital_of(
    study: Study,
    site: str,
    where: str,
    secret: bytes | None = None,
    cache: str | None = None,
    own: OwnData | None = None,
    words: Mapping[str | int, str] | None = None,
    layout: Layout | None = None,
) -> SiteCases:
    """Return a site's data, with its folder indexed and checked.

    In a simulation one person has all folders, so the secret for tokens and splits is derived from the
    study's seed and the site's name, and a run can be repeated. A hospital's own secret is in its site file,
    as are the folder for prepared images (`cache`) if it should not be inside the data folder, its `own`
    table and headings for the study's columns, and its own `words` for the study's classes; in a simulation
    these are in `site_overrides`. Its own `layout` goes before the study's. The names of files that no case
    uses are written into the hospital's own folder.
    """
    secret = secret or simulated_secret(study.seed, site)
    settings = study.data_at(site)
    if isinstance(settings, Images):
        settings = with_layout(settings, layout or study.layout_at(site))
    on_disk = isinstance(settings, Images) and settings.cache == "disk"
    place = find_cache_location(where, secret, cache) if on_disk else None
    try:
        data = SiteDataModule.open(
            where,
            settings,
            study.task.needs,
            site_secret=secret,
            batch=study.at(site).train.batch,
            steps=study.train.steps,
            on_all=study.on_all_from is not None and study.trains(site),
            seed=study.seed,
            classes=classes_of(study, site, words),
            cache=place,
            own=own_data_at(study, site, where, own),
        )
    except MedfedError as error:
        raise type(error)(f"site '{site}': {error}") from None
    data.check_size = size_check(study)
    chosen = None if cache is None else Path(cache)
    note = note_left_out(data.index.folder, data.index.left_out_files, secret, chosen)
    data.notes += (note,) if note else ()
    return SiteCases(site, data, secret)


def own_data_at(study: Study, site: str, where: str, own: OwnData | None = None) -> OwnData:
    """Return a site's own table and words: its own, else those that the study's `site_overrides` give."""
    own = own or OwnData()
    given = study.table_at(site)
    return OwnData(
        own.file or (given and str(Path(where) / given)),
        own.headings or study.columns_at(site),
        own.channels or study.channels_at(site),
    )


def screen_hospital(
    hospital: SiteCases, bears: Unreadable, cache: str | None = None, *, prepare: bool = True
) -> None:
    """Read each of a hospital's cases once, leave out those that cannot be used, and list them there.

    Args:
        hospital: its data.
        bears: how many cases may be left out.
        cache: as in `hospital_of`.
        prepare: whether the cases are also prepared, as training sees them.

    Raises:
        DataError: if more cases cannot be used than the hospital bears, or none is left.
    """
    data = hospital.data
    screening = data.screen(prepare=prepare)
    place = ""
    if screening.refused:
        place = write_refused(screening.refused, str(data.index.folder), hospital.secret, cache)
    try:
        data.leave_out(screening, bears)
    except DataError as error:
        raise type(error)(f"site '{hospital.name}': {error}; {place}") from None
    if place:
        data.notes += (place,)


def require_training_cases(hospital: SiteCases) -> None:
    """Raise if a hospital that trains has no training case.

    Raises:
        DataError: naming the hospital.
    """
    try:
        hospital.data.require_training_cases()
    except DataError as error:
        raise type(error)(f"site '{hospital.name}': {error}") from None


def bears_of(study: Study) -> Unreadable:
    """Return how many cases a site of a simulation leaves out; across hospitals each one's policy decides."""
    return study.data.unreadable if isinstance(study.data, Images) else Unreadable()


def classes_of(
    study: Study, site: str = "", words: Mapping[str | int, str] | None = None
) -> ClassNames | None:
    """Return a study's classes by name, with a site's own words for them, or None if it has no classes.

    Words that the study's own `site_overrides` give are those of a simulation; a site file's come on top.
    """
    classes = tuple(getattr(study.task, "classes", ()))
    if not classes:
        return None
    override = study.site_overrides.get(site)
    known = in_words({**(override.classes if override is not None else {}), **(words or {})})
    expected = ()
    if hasattr(study.task, "labelled_at"):
        expected = tuple(classes[number] for number in study.task.labelled_at(site))
    return ClassNames(classes, known, expected=expected)


def module_of(study: Study, site: str = "") -> pl.LightningModule:
    """Return the study's LightningModule, initialised from its seed and thus the same wherever it is built.

    If a site is given, it has that site's epochs and task settings.
    """
    network, _ = started_network(study)
    patch = getattr(study.data, "patch", None)
    if isinstance(study.data, Images) and study.data.patch is not None:
        _check_vanishing(study, study.data, network)
    dims = getattr(study.data, "spatial_dims", 3)
    epochs = study.at(site).epochs
    axes = study.data.patient_axes if isinstance(study.data, Images) else ("x", "y", "z")
    training = Training(study.train.optimiser, study.train.schedule, epochs, patch, site, dims, axes)
    return study.task.module(network, training)


# What was checked in this process: a simulation builds its study's network once per hospital.
_CHECKED: set[tuple[object, ...]] = set()


def _check_vanishing(study: Study, data: Images, network: torch.nn.Module) -> None:
    """Raise a StudyError if nothing is left of a patch at a layer of the study's network."""
    known = (
        msgspec.json.encode(network_for(study)),
        study.privacy.replaces_batch_norm,
        data.spatial_dims,
        data.patch,
    )
    if known not in _CHECKED and data.patch is not None:
        check_vanishing(_sees_image(network), kind_of(study.network), data.inputs, data.patch)
        _CHECKED.add(known)


def size_check(study: Study) -> CheckSize | None:
    """Return what raises for an image size that a study's network cannot take, if it sees whole images.

    The network is built at the first size, and each size is tried once.
    """
    data = study.data
    if not isinstance(data, Images) or data.patch is not None:
        return None
    record = network_for(study)
    built: list[torch.nn.Module] = []

    @functools.cache
    def refusal(size: tuple[int, ...]) -> str:
        try:
            record.check_size(size)
            if not built:
                built.append(norms_of_privacy(study, network_of(study)))
            check_vanishing(_sees_image(built[0]), kind_of(study.network), data.inputs, size)
        except StudyError as error:
            return str(error)
        return ""

    def check(size: tuple[int, ...]) -> None:
        if why := refusal(size):
            raise StudyError(why)

    return check


def _sees_image(network: torch.nn.Module) -> torch.nn.Module:
    """Return the part of a network that sees the image: columns beside it do not shrink."""
    return network.image if isinstance(network, ImageAndTable) else network


def network_of(study: Study) -> torch.nn.Module:
    """Return the study's network as the study file describes it, before its start and its privacy."""
    with torch.random.fork_rng():
        torch.manual_seed(study.seed)
        return untrained_network(study)


def norms_of_privacy(study: Study, network: torch.nn.Module) -> torch.nn.Module:
    """Return a study's network without batch norms if its privacy bears none."""
    return replace_batch_norms(network, "group") if study.privacy.replaces_batch_norm else network


def is_start_gone(study: Study) -> bool:
    """Return whether a study starts from a file that is no longer there, as a run may after its training."""
    return study.start_path is not None and not Path(study.start_path).exists()


def started_network(study: Study) -> tuple[torch.nn.Module, LoadedStart | None]:
    """Return the study's network, and what of it is from the study's start; None if it has none."""
    with torch.random.fork_rng():
        torch.manual_seed(study.seed)
        # Before the start is loaded: what it gives a norm would be lost with a norm that is replaced later.
        network = norms_of_privacy(study, untrained_network(study))
        loaded = prepare_training(
            network, study.given_start, study.train.lora, study.train.only, study.network_head
        )
    return network, loaded


def site_config_of(study: Study, site: str = "") -> SiteConfig:
    """Return how a site trains: the study's settings with that site's overrides."""
    study = study.at(site)
    return SiteConfig(
        epochs=study.epochs,
        local_epochs=study.train.epochs,
        precision=study.train.precision,
        clip=study.train.clip,
        accumulate=study.train.accumulate,
        keep_local=study.keep_local,
        trained_only=study.trained_only,
        optimiser_state=study.train.optimiser_state,
        batch=study.train.batch,
        local=study.local,
        privacy=study.privacy.planned(study.train.rounds),
        egress=egress_of(study, smallest_group=study.evaluation.smallest_group),
        compress=study.compress,
        required_scalars=study.rule.needs_scalars,
        parties=tuple(sorted(study.sites)),
        seed=study.seed,
        grows_alone=study.rule if study.network.grows_from_sums else None,
        on_all_from=study.on_all_from,
    )


def hub_config_of(study: Study) -> HubConfig:
    """Return what the hub needs to know of a study."""
    return HubConfig(
        rounds=study.train.rounds,
        sites=tuple(sorted(study.sites)),
        rule=study.rule,
        privacy=study.privacy.planned(study.train.rounds),
        fraction=study.sampling.fraction,
        minimum=study.minimum,
        deadline_s=study.sampling.deadline_s,
        seed=study.seed,
        study_digest=study_digest(study),
        compress=study.compress,
        outlier=study.sampling.outlier,
        evaluating=tuple(sorted(study.held_out)),
        max_examples=study.sampling.max_examples,
        selection=selection_of(study),
        average=study.train.average,
        structures=structures_of(study),
        on_all_from=study.on_all_from,
    )


def selection_of(study: Study) -> ModelSelection | None:
    """Return how the hub judges the rounds' models by the sites' validation scores; None if it does not.

    Raises:
        StudyError: as `judged_by`.
    """
    if study.train.keep == "last" and study.train.patience is None:
        return None
    return judged_by(study, "train.keep, train.patience")


def judged_by(study: Study, key: str) -> ModelSelection:
    """Return how a study's models are judged by the sites' validation scores; `key` is what asks for it.

    Raises:
        StudyError: if it is not known whether more or less of the task's score is better.
    """
    train, score = study.train, study.task.main_score
    metric = metric_of(score.removeprefix("val/"))
    if score != "val/loss" and metric.better not in ("higher", "lower"):
        raise StudyError(
            f"{key}: nobody says whether more or less of '{score}', the first score of "
            f"task '{kind_of(study.task)}', is better; a metric of this name says it, or leave it out"
        )
    return ModelSelection(
        score,
        "higher" if metric.better == "higher" else "lower",
        train.keep,
        train.patience,
        metric.lowest,
        metric.highest,
    )


def chooses_components(study: Study) -> bool:
    """Whether the hospitals' validation patients decide which components are removed."""
    return getattr(study.task, "postprocess", "none") == "auto"


def structures_of(study: Study) -> tuple[str, ...]:
    """Return the structures for which the hub chooses, in the task's order; none if it does not choose."""
    return tuple(study.task.classes[1:]) if chooses_components(study) else ()  # type: ignore[attr-defined]


def data_scalars(data: SiteDataModule) -> dict[str, float]:
    """Return what leaves with each update about a site's files, as numbers.

    How many cases the site left out, by reason, whether its labels name their structures, and whether its
    images have a size in mm.
    """
    left_out = {f"{LEFT_OUT}{reason}": float(count) for reason, count in data.left_out.items()}
    by = data.index.labels_by
    named = {LABELS_NAMED: float(by == "names")} if by in ("names", "numbers") else {}
    unit = {IMAGES_IN_MM: float(data.unit == "mm")} if data.unit else {}
    return {**left_out, **named, **unit}


def egress_of(study: Study, *, smallest_group: int | None, withheld: tuple[str, ...] = ()) -> Egress:
    """Return what may leave a hospital: what the study's rule, method, task and mechanism declare."""
    local = study.local
    needed = study.rule.needs_scalars
    by_class = [f"{name}/{one}" for name in needed for one in (*getattr(study.task, "classes", ()), "other")]
    reports = local.reports if local is not None else ()
    return Egress(
        scalars=TRAINING.union(
            with_personal(study.task.scores),
            needed,
            by_class,
            reports,
            study.privacy.scalars,
            names_of(structures_of(study)) if chooses_components(study) else (),
            (f"{LEFT_OUT}{reason}" for reason in REASONS.values()),
            (LABELS_NAMED,) if study.task.needs == "segment" else (),
            (IMAGES_IN_MM, WITHHELD),
        ),
        groups=local.sends if local is not None else (),
        smallest_group=smallest_group,
        withheld=withheld,
    )
