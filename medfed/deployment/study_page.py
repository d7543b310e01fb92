"""The page by which a hospital's privacy officer agrees to a study: what this hospital will do and send.

It is made of the study as this hospital trains it (its `site_overrides`), of its own site file (exchange,
policy, devices) and of its own cases, not of the study's defaults: what it says leaves is what `egress_under`
lets through under this hospital's policy.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from medfed.data.datamodules import DataModule
from medfed.data.describe.scope import Scope
from medfed.data.settings import Table
from medfed.deployment.own_code import other_packages
from medfed.deployment.policy import egress_under
from medfed.deployment.site_file import SiteFile
from medfed.evaluation.conformal import CUTS
from medfed.evaluation.inference import AGE_BAND_YEARS
from medfed.federation.egress import ROWS, Egress
from medfed.federation.postprocessing import CANDIDATES, COMPONENTS
from medfed.files import format_bytes
from medfed.pipeline.describing import length_for, needs_description, only_describes, protection_of
from medfed.pipeline.noised_statistics import deviation_of, noise_of, within_95
from medfed.pipeline.planning import least_of, scope_of
from medfed.pipeline.small_scores import PatientCounts
from medfed.privacy._patient_noise import PatientNoise
from medfed.registry import kind_of, summary
from medfed.runs.rounds import IMAGES_IN_MM, LABELS_NAMED, LEFT_OUT, WITHHELD
from medfed.study.canonical import start_digest
from medfed.study.plugins import loaded_plugin
from medfed.study.study import AnyExchange, Study
from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_text_template

# The approximate bytes of name, offsets and header per tensor on the wire.
_TENSOR_OVERHEAD_BYTES = 120

# What a site says of the format of its files, and the number of a mechanism that has an epsilon.
_APART = (LABELS_NAMED, IMAGES_IN_MM, WITHHELD)
EPSILON = "privacy/epsilon"

# What lets a name end its own place on the page and go on as the page's words.
_POSES = re.compile(r"[,;:()\"\\]")

# How many characters of names stand in one line.
_LINE = 100


@dataclass(frozen=True)
class OwnPart:
    """A study as one hospital takes part in it.

    study: as the hub offers it.  site: the hospital's own file.  cases: its training cases.  counts: the
    patients that its numbers of training are of.  similar: how its test patients differ from those of earlier
    results, if by few (`earlier_results.similar_results`).
    """

    study: Study
    site: SiteFile
    cases: int | None = None
    counts: PatientCounts | None = None
    similar: str = ""

    @property
    def own(self) -> Study:
        """The study with this hospital's own epochs and batch."""
        return self.study.at(self.site.name)

    @property
    def trains(self) -> bool:
        """Whether this hospital trains; one that is held out measures the final model."""
        return self.study.trains(self.site.name)

    @cached_property
    def egress(self) -> Egress:
        """What may leave it."""
        return egress_under(self.study, self.site.policy, self.counts)

    @property
    def numbers(self) -> list[str]:
        """The names of the numbers that may leave it beside the weights, under its policy and the privacy."""
        allowed = {name for name in self.egress.scalars if not self.egress.keeps(name)}
        if EPSILON not in self.study.privacy.scalars:  # it is on the list of whatever trains, and never sent
            allowed.discard(EPSILON)
        if not self.results:
            allowed.discard(WITHHELD)
        return sorted(self.study.privacy.filter_scalars(dict.fromkeys(allowed, 0.0)))

    @property
    def results(self) -> bool:
        """Whether results of an evaluation may leave it."""
        return self.egress.smallest_group is not None and bool(
            self.study.privacy.filter_scalars({f"{ROWS}test/federated/dice///value": 0.0})
        )


def describe(part: OwnPart, digest: str) -> str:
    """Return a study as a page of plain text for a privacy officer, before the hospital agrees to it."""
    study = part.own
    tensors, numbers, size = egress_size(study)
    page = render(
        Path(__file__).with_name("study_page.txt.jinja"),
        show=for_text_template,
        filters={"kind": kind_of, "summary": lambda one: summary(type(one)), "bytes": format_bytes},
        study=study,
        site=part.site,
        trains=part.trains,
        digest=digest,
        task=_task(study),
        data=_data(study) + _fold(study),
        start=start_digest(study.start_path) if study.start_path else None,
        only=only_describes(study),
        noised=noise_of(study) is not None,
        protection=protection_of(study) if needs_description(study) else study.privacy,
        before=list(_statistics_before_training(part)),
        duration=list(_duration(part)),
        tensors=tensors,
        numbers=f"{numbers:,}",
        size=size,
        in_all=study.train.rounds * max(size, _largest_update(study, numbers, tensors)),
        beside=list(_values_besides_weights(part)),
        after=list(_after(part)),
        settings=_settings(study),
        bound=_bound(study),
        through=list(_through(part)),
        plugins=[loaded_plugin(name, str(one.digest)) for name, one in sorted(study.plugins.items())],
        packages=other_packages(study),
    )
    return page.removesuffix("\n")


def _statistics_before_training(part: OwnPart) -> Iterator[str]:
    """Yield what leaves once before training, where a study asks for statistics."""
    study, least = part.own, max(least_of(part.own), part.site.policy.smallest_group)
    if not needs_description(study) or part.site.name not in study.sites:
        return
    numbers, protection = length_for(study), protection_of(study)
    size = format_bytes(numbers * 8)
    if (noise := noise_of(study)) is not None:
        yield from _noised(study, noise, f"once, {numbers:,} numbers ({size})")
    else:
        yield from _withheld(study, least, f"once, {numbers:,} numbers ({size})")
    yield (
        "  the hub sees this hospital's own numbers"
        if protection.reveals_each_update
        else f"  the hub learns only the sum over at least {protection.min_sites} hospitals (secure_sum)"
    )
    yield "  every hospital of the study receives the sum over all of them"


def _withheld(study: Study, least: int, what: str) -> Iterator[str]:
    """Yield what leaves as it was counted, small counts withheld."""
    yield f"{what}: counts and sums over its training patients"
    yield f"  none of fewer than {least} patients, nor what such a count would follow from; if it has"
    yield "  fewer training patients in all, only that there are too few; nothing, if these are the"
    yield f"  patients of an earlier study's statistics but for fewer than {least}"
    yield from _counted(scope_of(study), least)


def _noised(study: Study, noise: PatientNoise, what: str) -> Iterator[str]:
    """Yield what leaves under noise."""
    scope, deviates = scope_of(study), within_95(deviation_of(study, noise))
    yield f"{what}: counts of its training patients, to each of which"
    yield f"  this hospital adds noise of ±{deviates:.3g} (95 %) before it leaves (describe.noise)"
    yield f"  it spends epsilon {noise.epsilon:g} at delta {noise.delta:g} of each patient's privacy, once,"
    yield "  on this hospital's ledger; which patients train is taken as given"
    yield "  none is withheld for being small, as the noise hides small ones"
    yield "  patients; age in bins, sex, and the scanner's maker (one of a fixed list)"
    if scope.targets or scope.needs == "survival":
        yield "  patients of each class, or with the event"
    if scope.images is not None:
        yield "  coarse histograms of spacing, size and extent of each patient's first case; no intensities"
    if scope.structures:
        yield f"  patients with each structure, and coarsely its volumes: {_quoted(scope.structures)}"
    if scope.table is not None:
        yield "  of each column: patients with and without a value, patients of each word; no sums"


def _counted(scope: Scope, least: int) -> Iterator[str]:
    """Yield what is counted of a hospital's training patients."""
    yield "  patients and cases; age, sex, and the scanner's maker (one of a fixed list)"
    if scope.targets or scope.needs == "survival":
        yield "  patients of each class, or with the event"
    if scope.images is not None:
        yield "  histograms of spacing, size and extent"
        yield f"  of intensities within labelled structures, no bin of fewer than {least} voxels; their mean"
        yield "  and spread"
    if scope.structures:
        yield f"  patients with each structure, and a histogram of its volumes: {_quoted(scope.structures)}"
    if scope.table is not None:
        yield "  of each column: values and missing ones, sum and sum of squares, patients of each word"


def describe_for_hub(study: Study, exchange: AnyExchange, digest: str) -> str:
    """Return the page as a hospital with the default policy reads it, for whoever runs the hub."""
    name = min({*study.sites, *study.held_out}, default="a-hospital")
    site = SiteFile(name=name, data="", exchange=exchange)
    return (
        f"As '{name}' reads it if its policy is the default one. Each hospital's own page is made of its "
        f"own site file and cases, and stays there.\n\n{describe(OwnPart(study, site), digest)}\n"
    )


def _duration(part: OwnPart) -> Iterator[str]:
    """Yield for how long this hospital takes part, and how much it trains."""
    yield from _training_time(part)
    hours = part.site.give_up_hours
    if hours is not None:
        silent = _time(hours * 3600)
        yield f"this hospital gives up after {silent} without a sign of life from the hub (give_up_hours)"


def _training_time(part: OwnPart) -> Iterator[str]:
    study, train = part.own, part.own.train
    if not part.trains:
        yield f"until the final model, after up to {train.rounds} rounds of the other hospitals"
        return
    cases = "its" if part.cases is None else f"its {part.cases}"
    steps = f" of {train.steps} steps" if train.steps else ""
    yield (
        f"{train.rounds} rounds; in each, this hospital trains {_count(train.epochs, 'epoch')}{steps} on "
        f"{cases} cases"
    )
    if train.last_rounds_on_all:
        yield f"{_last_rounds(study)} it trains on its validation cases, too, in as many steps"
    if study.rule.max_sites == 1:
        yield f"of which it is asked in every {len(study.sites)}th: the model goes from hospital to hospital"
    elif study.sampling.fraction < 1:
        yield f"of which it is asked in about {study.sampling.fraction:.0%}, drawn from the study's seed"
    if train.patience:
        yield f"fewer, if the mean validation score is not better for {train.patience} rounds"
    deadline = study.sampling.deadline_s
    yield (
        "no time limit: a round waits for every hospital"
        if deadline is None
        else f"a round goes on after {_time(deadline)} without those that have not answered"
    )


def _last_rounds(study: Study) -> str:
    """Return the rounds in which validation cases train, too: 'in rounds 6 to 10'."""
    first, last = study.on_all_from, study.train.rounds
    return f"in round {last}" if first == last else f"in rounds {first} to {last}"


def _values_besides_weights(part: OwnPart) -> Iterator[str]:
    """Yield what leaves each round beside the network's weights, by name."""
    study = part.own
    yield {
        "sent": "the number of training cases behind them",
        "summed": "the number of training cases behind them, of which only all hospitals' sum can be read",
        "alike": "not the number of its training cases: every hospital counts the same",
    }[study.privacy.shows_examples]
    numbers = part.numbers
    apart = ("val/personal", COMPONENTS)
    scores = [name for name in numbers if name.startswith("val") and not name.startswith(apart)]
    if study.on_all_from is not None:
        yield f"{_last_rounds(study)} its validation cases count among these, and no score of them leaves"
    if scores:
        yield from _listed("scores over all of its validation cases, one of each", scores)
    else:
        yield f"no scores: they stay here{_why_no_scores(part)}"
    yield from _kept_as_few(part)
    personal = _is_personal(study) and study.on_all_from is None
    if scores and personal and any(name.startswith("val/personal") for name in numbers):
        yield "the same scores of the model that is personalised here (val/personal/...)"
    training = [name for name in numbers if not name.startswith(("val", LEFT_OUT)) and name not in _APART]
    if training:
        yield from _listed("about training, one of each", training)
    yield from _of_files(numbers)


def _of_files(numbers: list[str]) -> Iterator[str]:
    """Yield what leaves of the hospital's files."""
    if LABELS_NAMED in numbers:
        yield "whether its labels name their structures, and whether its images have a size in mm"
    elif IMAGES_IN_MM in numbers:
        yield "whether its images have a size in mm"
    if any(name.startswith(LEFT_OUT) for name in numbers):
        yield f"how many cases it left out because they cannot be used, by reason ({LEFT_OUT}...)"


def _kept_as_few(part: OwnPart) -> Iterator[str]:
    """Yield which numbers stay as they are of too few of this hospital's patients."""
    kept = sorted(
        name for name in part.egress.few if not name.startswith(("val/personal", *part.egress.withheld))
    )
    if kept and part.counts is not None:
        least = max(part.study.evaluation.smallest_group, part.site.policy.smallest_group)
        yield from _listed(f"not sent, as of fewer than {least} of its patients (smallest_group)", kept)


def _why_no_scores(part: OwnPart) -> str:
    """Return why scores stay that the study would send, where this hospital decides it."""
    if not part.egress.withheld:
        return ""
    if part.site.policy.rows == "none":
        return " (this hospital's policy.rows)"
    smallest = part.egress.smallest_group
    few = _count(part.counts.validated if part.counts else 0, "validation patient")
    return f" ({few}; this hospital sends none over fewer than {smallest})"


def _after(part: OwnPart) -> Iterator[str]:
    """Yield what leaves after training."""
    if part.trains and any(name.startswith(COMPONENTS) for name in part.numbers):
        yield (
            f"once, the number of its validation patients, and {len(CANDIDATES)} mean gains in Dice of each "
            f"structure over them ({COMPONENTS}...),"
        )
        yield "  in thousandths: by removing components below a volume, or all but the largest"
    yield from _results(part)
    if not part.trains:
        yield from _of_files(part.numbers)


def _results(part: OwnPart) -> Iterator[str]:
    if not part.results:
        own = part.site.policy.rows == "none"
        yield (
            "no results; this hospital's policy keeps them here (policy.rows)"
            if own
            else "no results; under this protection they stay here"
        )
        return
    yield (
        f"once, results over groups of at least {part.egress.smallest_group} test patients: each metric of "
        "the first and the final model"
    )
    yield "  (row/<split>/<model>/<metric>/<structure>/<group>/value, low, high, n); the groups are"
    yield (
        f"  all patients, and by sex, age band of {AGE_BAND_YEARS} years, spacing and scanner (as this "
        "hospital's table names it)"
    )
    if part.trains and part.study.evaluation.guarantee is not None:
        yield (
            f"  and at {len(CUTS)} thresholds in which share of its validation patients the final model "
            f"fails at most, in steps of none or at least {part.egress.smallest_group} of them, and the mean"
        )
        yield "  share of voxels missed, in hundredths (row/val/federated/risk_<what>@<threshold>/...)"
    yield f"  and how many results stay because they are over fewer patients ({WITHHELD})"
    yield from _similar(part)


def _similar(part: OwnPart) -> Iterator[str]:
    """Yield that results can be subtracted from those of an earlier study, and what this hospital does."""
    if not part.similar:
        return
    withholds = part.site.policy.similar_results == "withhold"
    do = "so none of them leaves" if withholds else "they leave all the same"
    for line in textwrap.wrap(f"BUT {part.similar}; {do} (policy.similar_results)", _LINE):
        yield f"  {line}"


def _is_personal(study: Study) -> bool:
    return bool(study.keep_local) or study.local is not None


def _listed(title: str, names: list[str]) -> Iterator[str]:
    """Yield a title with names, in lines that fit a page."""
    line = f"{title}: {names[0]}"
    for name in names[1:]:
        if len(line) + len(name) > _LINE:
            yield f"{line},"
            line = f"  {name}"
        else:
            line = f"{line}, {name}"
    yield line


def _through(part: OwnPart) -> Iterator[str]:
    """Yield by which way this hospital sends, to which host, and what the way itself shows."""
    exchange = part.site.exchange
    yield f"{kind_of(exchange)}: {summary(type(exchange))}"
    yield from (f"to {address}" for address in exchange.addresses())
    if not exchange.is_signed:
        yield "NOT signed: whoever can write there can speak as the hub or as any hospital"
    yield "every few seconds that it is connected; if it stops, one of a fixed list of reasons"
    if part.trains and _agrees_on_keys(part.study):
        yield "each round, messages by which the hospitals agree on keys; they hold nothing of the cases"
    yield "an upload that is cut and a round that is repeated are sent again"
    yield "the hub deletes each update there once it has merged it and published the next model"


def _agrees_on_keys(study: Study) -> bool:
    """Whether the hospitals agree on keys, for a round or for the statistics before."""
    hidden = not study.privacy.reveals_each_update
    return hidden or (needs_description(study) and not protection_of(study).reveals_each_update)


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

    from medfed.models.networks import replace_batch_norms
    from medfed.models.networks._adapters import prepare_training
    from medfed.models.networks._shapes_only import ShapesOnly
    from medfed.study.network import untrained_network
    from medfed.wire.weights import shared_tensors

    # What nobody approved yet must not fill the memory.
    with torch.random.fork_rng(), ShapesOnly():
        network = untrained_network(study)
        if study.privacy.replaces_batch_norm:
            network = replace_batch_norms(network, "group")
        prepare_training(network, None, study.train.lora, study.train.only, study.network_head)
    weights = shared_tensors(network, study.keep_local, trained_only=study.trained_only, shapes_only=True)
    size = sum(tensor.numel() * tensor.element_size() + _TENSOR_OVERHEAD_BYTES for tensor in weights.values())
    return len(weights), sum(tensor.numel() for tensor in weights.values()), size


def _largest_update(study: Study, numbers: int, tensors: int) -> int:
    """Return the most bytes of a round's update: protected, with a local method's groups, not compressed."""
    groups = 1 + (len(study.local.sends) if study.local is not None else 0)
    return groups * math.ceil(numbers * study.privacy.bytes_per_number + tensors * _TENSOR_OVERHEAD_BYTES)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    """Return seconds in words."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:g} seconds"


def _task(study: Study) -> str:
    classes = getattr(study.task, "classes", ())
    if study.task.described:
        return f"{kind_of(study.task)} ({study.task.described})"
    return f"{kind_of(study.task)} ({_quoted(classes)})" if classes else kind_of(study.task)


def _quoted(names: Iterable[str]) -> str:
    """Return names of the study's author, quoted where one could pose as words of this page.

    >>> _quoted(["lesion", "AS <= 2", "healthy), by a network of 40 numbers"])
    'lesion, AS <= 2, "healthy), by a network of 40 numbers"'
    """
    return ", ".join(json.dumps(name, ensure_ascii=False) if _POSES.search(name) else name for name in names)


def _fold(study: Study) -> str:
    """Return which patients of a hospital are tested, in one fold of a cross-validation; '' without."""
    if (fold := study.data.fold) is None:
        return ""
    if not fold.number:
        return "; every patient trains, and only those whose given split is test are tested"
    return (
        f"; fold {fold.number} of {fold.of} of a cross-validation: one in {fold.of} of the hospital's "
        "patients is tested, the others train and validate; each fold is a study of its own"
    )


def _data(study: Study) -> str:
    data = study.data
    if isinstance(data, Table):
        targets = [name for name in (data.target, data.time, data.event) if name]
        return f"a table: {_quoted(data.features)}; predicted: {_quoted(targets)}"
    if isinstance(data, DataModule):
        return f"by the data module '{kind_of(data)}': {summary(type(data))}"
    unit = "pixels" if data.spatial_dims == 2 else "voxels"
    patch = "whole images" if data.patch is None else f"patches of {' x '.join(map(str, data.patch))} {unit}"
    if data.plan != "given":
        patch = "patches as all hospitals' statistics give"
    count = f"{data.inputs} channel{'s' * (data.inputs > 1)}"
    names = f" ({_quoted(data.channel_names)})" if data.channel_names else ""
    pet = ", PET as SUV by body weight" if data.read.pet == "suv" else ""
    columns = f"; beside each image, of a table: {_quoted(data.table.features)}" if data.table else ""
    return f"images of {count}{names}{pet}, {patch}, on this hospital's machine{columns}"


def _settings(study: Study) -> list[tuple[str, object]]:
    plain = msgspec.to_builtins(study.privacy)
    return [(key, value) for key, value in plain.items() if key != "kind"]
