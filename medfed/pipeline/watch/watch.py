"""One look at a deployed model: what it sees and says of new patients, beside what it did of earlier ones.

The reference is made at the hospital, by the first call, from a folder that the hospital names: training
sends nothing for it, so a study's digest does not change. What the model says of patients who trained it is
no reference for what it says of others: these patients count for inputs alone. Patients of the reference, and
those who trained, are left out of a look.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from pytorch_lightning import LightningModule

from medfed.data.splits import simulated_secret
from medfed.errors import DataError, RunError, TooFewPatientsError
from medfed.evaluation.drift.compare import Level, compare
from medfed.evaluation.drift.sketch import Sketch, Variable, merge, released, sketch_of
from medfed.evaluation.rows import FEDERATED
from medfed.files import private_files, utc_now, write_whole
from medfed.pipeline.create_run import open_run
from medfed.pipeline.dossier.manifest import digest_file
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.predict import load_model
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.pipeline.watch.earlier_looks import read_all, write_earlier
from medfed.pipeline.watch.labelled import measure_look
from medfed.pipeline.watch.observe import Observation, observe, one_per_patient, variables_of
from medfed.pipeline.watch.page import in_words, write_page
from medfed.pipeline.watch.state import Look, Reference, WatchFolder, read_sketch
from medfed.runs.folder import RunFolder
from medfed.runs.trained import KEY_BYTES, TrainedCases, read_trained
from medfed.study.study import Study

# How many looks share one chance of a false alarm, unless the reference is made for another number.
LOOKS = 12

# A name becomes a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

UNCHECKED = (
    "whether patients of the reference trained the model could not be checked: if they did, what the model "
    "says of them differs from what it says of new patients, and an alarm on outputs may come of that alone"
)


@dataclass(frozen=True)
class Asked:
    """What a look is asked for beside its data.

    references: folders, tables or other hospitals' released sketches (.json) that a new reference is made of.
    looks: how many looks share the chance of a false alarm, for a new reference.  labels: also measure.
    """

    references: Sequence[Path] = ()
    looks: int | None = None
    labels: bool = False


@dataclass(frozen=True)
class Watched:
    """The look that was made, its reference, and where the page is."""

    look: Look
    reference: Reference
    page: Path


@dataclass(frozen=True, repr=False)
class _Setting:
    """What a look and its reference have in common."""

    study: Study
    folder: RunFolder
    module: LightningModule
    name: str
    own: OwnChoices
    state: WatchFolder
    level: Level

    @property
    def secret(self) -> bytes:
        return self.own.secret or simulated_secret(self.study.seed, self.name)

    @property
    def variables(self) -> list[Variable]:
        return variables_of(self.study)

    def observed(self, place: Path) -> list[Observation]:
        return observe(self.study, self.module, place, self.name, self.secret, self.own)

    def sketch(self, cases: Sequence[Observation]) -> Sketch:
        return sketch_of(self.variables, (case.values for case in cases))


@private_files()
def watch(
    run: str | Path | RunFolder,
    data: str | Path,
    *,
    name: str,
    own: OwnChoices | None = None,
    asked: Asked | None = None,
) -> Watched:
    """Compare a hospital's new cases with its reference, write the page, and return the look.

    Raises:
        RunError: if there is no reference and none is named, or it is of another model or study.
        TooFewPatientsError: if there are too few new patients to say anything; it counts as no look.
        DataError: if the folder's cases cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise RunError(
            f"watch-model --name: '{name[:64]}' is no name; take letters, digits, _ and -, as of a hospital"
        )
    folder, facts, study = open_run(run)
    own, asked = own or OwnChoices(), asked or Asked()
    study = own.as_read_here(study)
    state = WatchFolder(folder.path, name)
    smallest = max(study.evaluation.smallest_group, own.smallest_group)
    level = Level(looks=asked.looks or LOOKS, min_patients=smallest)
    with state.alone(), suppress_warnings():
        setting = _Setting(study, folder, load_model(study, folder, FEDERATED), name, own, state, level)
        reference = _reference(setting, facts.digest, asked)
        if reference.level.min_patients > smallest:  # it was made with the site file, and this call without
            setting = replace(setting, level=reference.level)
        look, patients = _look(setting, Path(data), reference)
        if asked.labels:
            own = replace(own, smallest_group=setting.level.min_patients)
            measure_look(study, folder, state, Path(data), name, own, look.number, patients)
        state.append_look(look)
        write_page(folder, state, name)
    return Watched(look, reference, state.page)


def _reference(setting: _Setting, digest: str, asked: Asked) -> Reference:
    """Return the reference, which is made if there is none."""
    state, reference = setting.state, setting.state.read_reference()
    weights = digest_file(setting.folder.checkpoint(FEDERATED)).sha256
    if reference is None:
        if not asked.references:
            raise RunError(
                f"watch of '{setting.name}': there is no reference yet; name with --reference a folder of "
                "patients for whom the model's work was checked, such as the one this hospital trained or "
                "tested with"
            )
        reference = _made(setting, digest, weights, asked.references)
        state.write_reference(reference)
        return reference
    if asked.references or asked.looks is not None:
        raise RunError(
            f"watch of '{setting.name}': its reference was made on {reference.made[:10]} of "
            f"{reference.patients} patients; omit --reference and --looks. For a new one move "
            "watch/NAME of the run folder away, which also begins to count looks anew"
        )
    if (reference.study, reference.weights_sha256) != (digest, weights):
        raise RunError(
            f"watch of '{setting.name}': its reference is of another model than the run's now; move "
            "watch/NAME of the run folder away and name a --reference for this model"
        )
    return reference


def _made(setting: _Setting, digest: str, weights: str, places: Sequence[Path]) -> Reference:
    """Return a new reference from folders and other hospitals' sketches."""
    cases = [case for place in places if place.suffix != ".json" for case in setting.observed(place)]
    sketches = [read_sketch(place) for place in places if place.suffix == ".json"]
    trained, note = _trained_patients(setting.folder, cases)
    outputs = {one.name for one in setting.variables if one.kind == "output"}
    chosen = one_per_patient(cases)
    values = [
        {
            name: value
            for name, value in one.values.items()
            if one.patient not in trained or name not in outputs
        }
        for one in chosen
    ]
    if chosen and len(chosen) < setting.level.min_patients:
        raise _too_few(setting, len(chosen), "patients for a reference")
    own = [sketch_of(setting.variables, values)] if chosen else []
    key = os.urandom(KEY_BYTES).hex()
    known = TrainedCases(key)
    digests = sorted(known.digest(case.content) for case in cases if case.content is not None)
    sketch = merge([*own, *sketches])
    return Reference(
        made=utc_now(),
        study=digest,
        weights_sha256=weights,
        patients=max(one.patients for one in sketch.columns),
        unseen=max(one.patients for one in sketch.columns if one.variable.kind == "output"),
        level=setting.level,
        sketch=sketch,
        cases=TrainedCases(key, {setting.name: {"reference": digests}}),
        note=note,
    )


def _keep_apart(setting: _Setting, patients: set[str]) -> None:
    """Note of whom a look is, before anything of it is written.

    Raises:
        TooFewPatientsError: if fewer than the smallest group came or went since an earlier look.
    """
    state, least = setting.state, setting.level.min_patients
    known = read_all(state.earlier)
    for name, earlier in known.items():
        if earlier.gives_few("look", patients, least):
            raise TooFewPatientsError(
                f"watch of '{setting.name}': beside those of an earlier look of '{name}', these numbers "
                f"would give those of fewer than {least} patients who came or went since: whoever has both "
                "pages could subtract them. Wait for more, or give a folder of new patients alone; if nobody "
                f"has the earlier pages any more, remove {state.earlier.name} from watch/{name} of the run "
                "folder. It counts as no look"
            )
    own = known[state.earlier.parent.name]
    write_earlier(state.earlier, own.after(len(state.read_looks()) + 1, "look", patients))


def _too_few(setting: _Setting, number: int, what: str) -> TooFewPatientsError:
    return TooFewPatientsError(
        f"watch of '{setting.name}': {number} {what}, and at least {setting.level.min_patients} are needed "
        "(evaluation.smallest_group); wait for more. It counts as no look"
    )


def _trained_patients(folder: RunFolder, cases: Sequence[Observation]) -> tuple[set[str], str]:
    """Return the patients who trained or chose the model, and a note if nobody knows."""
    trained = read_trained(folder.trained)
    contents = {case.token: case.trained_content for case in cases if case.trained_content is not None}
    if not cases:
        return set(), ""
    readable = sum(case.content is not None for case in cases)
    if trained is None or len(contents) < readable:
        return set(), UNCHECKED
    tokens = trained.seen(contents)
    return {case.patient for case in cases if case.token in tokens}, ""


def _look(setting: _Setting, data: Path, reference: Reference) -> tuple[Look, set[str]]:
    """Return the look at new patients, and who they are."""
    cases = setting.observed(data)
    known = reference.cases.seen({case.token: case.content for case in cases if case.content is not None})
    left_out = {case.patient for case in cases if case.token in known}
    left_out |= _trained_patients(setting.folder, cases)[0]
    new = [case for case in one_per_patient(cases) if case.patient not in left_out]
    if len(new) < setting.level.min_patients:
        seen = f"new patients ({len(left_out)} are of the reference or trained the model)"
        raise _too_few(setting, len(new), seen if left_out else "new patients")
    _keep_apart(setting, {case.patient for case in new})
    sketch = setting.sketch(new)
    smallest = setting.level.min_patients
    level = msgspec.structs.replace(reference.level, min_patients=smallest)
    compared = compare(reference.sketch, sketch, level)
    if all(one.state == "not compared" for one in compared):
        raise DataError(
            f"watch of '{setting.name}': nothing could be compared: the reference or these patients are too "
            "few in each variable"
        )
    write_whole(setting.state.sketch, msgspec.json.encode(released(sketch, smallest)))
    look = Look(
        number=len(setting.state.read_looks()) + 1,
        made=utc_now(),
        patients=len(new),
        known=len(left_out),
        unusable=sum(case.content is None for case in cases),
        compared=compared,
    )
    return look, {case.patient for case in new}


def describe(watched: Watched) -> str:
    """Return a look in words, for the terminal."""
    look, reference = watched.look, watched.reference
    tested = [one for one in look.compared if one.p is not None]
    place = (look.number - 1) % reference.level.looks + 1
    lines = [
        f"look {look.number} ({place} of {reference.level.looks}): {look.patients} new patients, "
        f"compared with {reference.patients}; outputs with {reference.unseen}"
    ]
    if look.known:
        lines.append(f"{look.known} patients are left out: they are of the reference, or trained the model")
    if look.unusable:
        lines.append(f"{look.unusable} cases cannot be used")
    for one in look.alarms:
        lines.append(f"ALARM: {in_words(one)}")
    for one in look.compared:
        if one.state == "change":
            lines.append(f"changed a little: {in_words(one)}")
        if one.state == "not compared":
            lines.append(f"not compared: {one.name} ({one.note})")
    if not look.alarms:
        lines.append(
            f"no alarm: {len(tested)} comparisons; absence of an alarm does not show that nothing changed"
        )
    if reference.note:
        lines.append(f"note: {reference.note}")
    return "\n".join(lines)
