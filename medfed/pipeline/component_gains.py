"""What the removal of connected components would gain on a hospital's validation patients.

The gains are measured as the report measures: on each image's own grid, with the prediction resampled back,
mirrored if `task.mirror` says so. `federation/postprocessing.py` says what leaves and how the hub chooses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytorch_lightning as pl
import torch
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from medfed.evaluation.inference import LabelCache, SiteCases, batches
from medfed.federation.postprocessing import CANDIDATES, Rules, rules_in, scalars_of, sentence_of
from medfed.models.tasks._connected_components import connected_components, kept_components
from medfed.pipeline.factory import chooses_components, structures_of
from medfed.runs.facts import PostprocessFacts
from medfed.study.study import Study
from medfed.wire.update import GlobalModel


def with_rules(study: Study, rules: Rules) -> Study:
    """Return the study with what was chosen, as the task of a finished run."""
    return msgspec.structs.replace(study, task=msgspec.structs.replace(study.task, postprocess=dict(rules)))


def removed_components(study: Study) -> Rules | None:
    """Return which components a run removes, by structure; None where none are given and none were chosen."""
    rules = getattr(study.task, "postprocess", "none")
    return None if isinstance(rules, str) else dict(rules)


def postprocess_facts(study: Study, final: GlobalModel) -> PostprocessFacts | UnsetType:
    """Return which components are removed, as the final model says; nothing if the study does not choose.

    Raises:
        WireError: if the model's choice is none of this study.
    """
    if not chooses_components(study):
        return UNSET
    rules = rules_in(final, structures_of(study))
    return PostprocessFacts(rules=dict(rules), sentence=sentence_of(rules, {}))


def component_scalars(
    study: Study, module: pl.LightningModule, hospital: SiteCases, least: int
) -> dict[str, float]:
    """Return what a hospital sends of the last merged model; nothing of fewer than `least` patients.

    A patient with several images counts once, with the mean of their gains.
    """
    cases = hospital.data.cases("val")
    if len({case.patient for case in cases}) < max(least, 1):
        return {}
    gains = _gains(study, module, hospital)
    means = {
        structure: np.mean([np.mean(images, axis=0) for images in by_patient.values()], axis=0).tolist()
        for structure, by_patient in gains.items()
    }
    return scalars_of(len({case.patient for case in cases}), means)


def _gains(
    study: Study, module: pl.LightningModule, hospital: SiteCases
) -> dict[str, dict[str, list[NDArray[np.float64]]]]:
    """Return the gain of each candidate, by structure and patient, one for each image."""
    task: Any = study.task
    data, labels = hospital.data, LabelCache(hospital)
    gains: dict[str, dict[str, list[NDArray[np.float64]]]] = defaultdict(lambda: defaultdict(list))
    device = next(module.parameters()).device
    module.eval()
    for batch in batches(data, data.cases("val")):
        with torch.inference_mode():
            outputs = module.predict_step({**batch, "image": batch["image"].to(device)}, 0)
        (case,) = (data.case(token) for token in batch["case"])
        restored = data.restored(outputs["probabilities"][0].cpu().numpy(), case, nearest=False)
        predicted = task.labels(torch.as_tensor(restored)[None])[0, 0].numpy()
        reference = labels.reference(case)
        label = reference.label.reshape(predicted.shape)
        for number in task.labelled_at(hospital.name):
            one = component_gains(predicted == number, label == number, reference.voxel_ml)
            gains[task.classes[number]][case.patient].append(np.array(one))
    return gains


def component_gains(
    predicted: NDArray[np.bool_], reference: NDArray[np.bool_], voxel_ml: float | None
) -> Sequence[float]:
    """Return by how much each of `CANDIDATES` raises the Dice of one structure in one image.

    Of an image without voxels of a known volume, components below a volume gain 0: none would be removed.
    """
    components, voxels = connected_components(predicted)
    inside = np.bincount(components[reference], minlength=len(voxels))
    inside[0] = 0
    drawn, before = int(reference.sum()), _dice(int(voxels.sum()), int(inside.sum()), int(reference.sum()))
    gains = []
    for candidate in CANDIDATES:
        if candidate != "largest" and voxel_ml is None:
            gains.append(0.0)
            continue
        stays = kept_components(voxels, candidate, voxel_ml)
        after = _dice(int(voxels[stays].sum()), int(inside[stays].sum()), drawn)
        gains.append(after - before)
    return gains


def _dice(predicted: int, both: int, reference: int) -> float:
    """Return the Dice of numbers of voxels; 1 where nothing is drawn and nothing predicted."""
    return 2 * both / (predicted + reference) if predicted + reference else 1.0
