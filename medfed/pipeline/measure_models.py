"""A run's models on its hospitals' cases, as rows: the final one, each hospital's own, and whatever else
a study asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from medfed.data.splits import SPLITS
from medfed.errors import MedfedError
from medfed.evaluation.inference import Hospital, References, conditions, measure
from medfed.evaluation.rows import FEDERATED, append, model_of, personal
from medfed.pipeline import baseline as baselines
from medfed.pipeline.factory import module_of
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.study import Study
from medfed.wire.weights import Weights, load

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from medfed.data.case import Case


def measure_all(
    study: Study,
    folder: RunFolder,
    hospitals: Sequence[Hospital],
    models: Mapping[str, Weights],
    progress: Progress,
    facts: dict[str, Any],
) -> list[Hospital]:
    """Measure every model on every hospital's test cases, and on all cases of those that took no part.

    A classifier is measured on validation cases too: its operating point is fixed there and not on what
    is reported. Returns the hospitals that could be measured; one with a case that cannot be read is
    named in `facts` instead.

    Raises:
        MedfedError: if no hospital could be measured, the first one's reason.
    """
    folder.cases.unlink(missing_ok=True)
    if study.task.needs == "survival":
        write_baselines(study, folder, hospitals, models)
    measured: list[Hospital] = []
    first: MedfedError | None = None
    for hospital in hospitals:
        try:
            measure_at(study, folder, hospital, models)
            measured.append(hospital)
        except MedfedError as error:
            first = first or error
            facts["unmeasured"][hospital.name] = str(error)
            progress.say(f"{hospital.name}: nothing measured there: {error}")
    if first is not None and not measured:
        raise first
    return measured


def measure_at(study: Study, folder: RunFolder, hospital: Hospital, models: Mapping[str, Weights]) -> None:
    splits = ("test",) if study.task.needs == "segment" else ("val", "test")
    references = References(hospital)
    held_out = hospital.name in study.held_out
    for split in ("test",) if held_out else splits:
        cases = usable(hospital) if held_out else hospital.data.cases(split)
        whole = models_at(study, folder, hospital.name, models)
        for model, weights in whole.items():
            measure_one(study, folder, hospital, cases, split, model, weights, references)
        if split == "test" and FEDERATED in whole:
            measure_changed(study, folder, hospital, cases, whole[FEDERATED], references)


def measure_changed(
    study: Study,
    folder: RunFolder,
    hospital: Hospital,
    cases: Sequence[Case],
    weights: Weights,
    references: References,
) -> None:
    """Measure the federated model on these cases changed a little, each way that the task knows."""
    for condition in conditions(study.task) if study.evaluation.robustness else ():
        measure_one(study, folder, hospital, cases, "test", FEDERATED, weights, references, condition)


def models_at(
    study: Study, folder: RunFolder, site: str, models: Mapping[str, Weights]
) -> dict[str, Weights]:
    """Return the models that can be measured at a hospital: with what it kept for itself,
    and its personal one.

    Where layers stay in the hospitals the federated model is whole only at one that has such layers; a
    hospital that took no part has none.
    """
    from safetensors.torch import load_file

    from medfed.federation.site import KEPT, PERSONAL

    found = dict(models)
    if site not in study.sites:
        return {m: w for m, w in found.items() if m != FEDERATED or not study.keep_local}
    own = folder.site(site)
    if study.keep_local and (own / KEPT).exists():
        found[FEDERATED] = {**models[FEDERATED], **load_file(own / KEPT)}
    if (own / PERSONAL).exists():
        found[personal(site)] = load_file(own / PERSONAL)
    return found


def measure_one(
    study: Study,
    folder: RunFolder,
    hospital: Hospital,
    cases: Sequence[Case],
    split: str,
    model: str,
    weights: Weights,
    references: References,
    condition: str | None = None,
) -> None:
    module = module_of(study)
    load(module, weights)
    tolerance_mm = study.evaluation.tolerance_mm
    baseline = baselines.read(folder.path).get(model) if study.task.needs == "survival" else None
    rows = measure(
        study.task,
        module,
        hospital,
        cases,
        split=split,
        model=model,
        references=references,
        tolerance_mm=tolerance_mm,
        condition=condition,
        seed=study.seed,
        baseline=baseline,
    )
    append(folder.cases, list(rows))  # whole or not at all: a case of this hospital may prove unreadable


def picture(
    study: Study, folder: RunFolder, hospitals: Sequence[Hospital], models: Mapping[str, Weights]
) -> None:
    """Write cases.html, the pictures that stay: best, median, worst and what was missed, of a segmentation."""
    if study.task.needs != "segment":
        return
    from medfed.evaluation.gallery import write_gallery

    shown = {}
    for hospital in hospitals:
        whole = models_at(study, folder, hospital.name, models)
        if FEDERATED in whole:
            shown[hospital.name] = (hospital, whole[FEDERATED])

    def module_at(site: str) -> pl.LightningModule:
        module = module_of(study)
        load(module, shown[site][1])
        return module

    write_gallery(
        folder.path, study.task, module_at, {site: hospital for site, (hospital, _) in shown.items()}
    )


def write_baselines(
    study: Study, folder: RunFolder, hospitals: Sequence[Hospital], models: Mapping[str, Weights]
) -> None:
    """Write each model's baseline hazard, over the training patients of the hospitals that trained."""
    sites = [hospital.data for hospital in hospitals if hospital.name in study.sites]
    found = {}
    for model, weights in models.items():
        if study.keep_local and model == FEDERATED:
            # It is whole only with a hospital's own layers, and there is no one baseline for all of them.
            continue
        module = module_of(study)
        load(module, weights)
        found[model] = baselines.baseline_of(module, sites)
    baselines.write(folder.path, found)


def usable(hospital: Hospital) -> list[Case]:
    return [case for split in SPLITS for case in hospital.data.cases(split)]


def saved(folder: RunFolder) -> dict[str, Weights]:
    """Return the weights of every model that a run has saved, by the model's name."""
    return {
        model_of(path.stem): torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        for path in sorted(folder.checkpoints.glob("*.ckpt"))
    }
