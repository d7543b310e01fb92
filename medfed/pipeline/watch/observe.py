"""What a model sees and says of each patient of a folder: the values that sketches count.

No label or target is needed. Of a patient with several cases one counts, the one with the smallest token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from pytorch_lightning import LightningModule

from medfed.data.batch_needs import WHOLE_IMAGE_NEEDS
from medfed.data.case import Case
from medfed.data.case_reading import naming, read_case
from medfed.data.dataset import used_part
from medfed.data.index import Index
from medfed.data.planes import in_pixels
from medfed.data.refusals import TableRowError
from medfed.data.screening import image_digest
from medfed.data.settings import Images, Table
from medfed.data.table import fit_scaling, network_inputs, read_inputs
from medfed.data.transforms import prepare, restore, whole_input
from medfed.data.volume import Volume
from medfed.errors import DataError, ImageError, RunError
from medfed.evaluation.drift.image_values import image_values, image_variables
from medfed.evaluation.drift.sketch import Value, Variable
from medfed.evaluation.inference import voxel_ml_of
from medfed.models.tasks._connected_components import final_labels
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.predict import columns_beside, unlabelled_index
from medfed.pipeline.seen_cases import contents_of
from medfed.study.study import Study

# Whether the files of a patient's case can be read and prepared: a new scanner may write what cannot.
FILES = Variable(name="files", kind="input", grid="words", words=("can be used", "cannot be used"))


@dataclass(frozen=True, repr=False)
class Observation:
    """One case's values.

    content: a digest of what the model sees of it, None where that cannot be read.  trained_content: the
    digest by which the run's trained.json knows it, None also where a table has no target to tell.
    """

    token: str
    patient: str
    values: Mapping[str, Value]
    content: bytes | None = None
    trained_content: bytes | None = None


def variables_of(study: Study) -> list[Variable]:
    """Return what is compared of a study: its inputs, then its outputs.

    Raises:
        RunError: if the study's data or outputs are of a kind of its own.
    """
    data, outputs = study.data, _output_variables(study)
    if isinstance(data, Table):
        return [*_column_variables(data), *outputs]
    if isinstance(data, Images):
        beside = () if data.table is None else _column_variables(data.table.as_table)
        return [FILES, *image_variables(channels_of(data)), *beside, *outputs]
    raise RunError(
        "watch-model: the study's data are of its own data module, and medfed does not know what they hold"
    )


def channels_of(settings: Images) -> tuple[str, ...]:
    """Return the names of a study's channels, numbered where it gives none."""
    return tuple(settings.channel_names or (f"channel {k}" for k in range(settings.inputs)))


def _column_variables(settings: Table) -> Iterator[Variable]:
    for name in settings.numbers:
        yield Variable(name=f"column {name}", kind="input", grid="number")
    for name, words in settings.categorical.items():
        yield Variable(name=f"column {name}", kind="input", grid="words", words=tuple(words))


def _output_variables(study: Study) -> list[Variable]:
    predicts, classes = study.task.predicts, tuple(getattr(study.task, "classes", ()))
    if predicts == "segment":
        return [Variable(name=f"volume of {name}", kind="output", grid="number") for name in classes[1:]]
    if predicts == "survival":
        return [Variable(name="log risk", kind="output", grid="number")]
    if predicts == "other":
        raise RunError(
            "watch-model: the study's task has predictions of its own, which medfed cannot compare"
        )
    # Of two classes, one probability says all.
    shown = classes[1:] if len(classes) == 2 and predicts != "multilabel" else classes
    return [Variable(name=f"probability of {name}", kind="output", grid="share") for name in shown]


def observe(
    study: Study, module: LightningModule, place: Path, name: str, secret: bytes, own: OwnChoices
) -> list[Observation]:
    """Return what the model sees and says of each case of a folder or table.

    Raises:
        DataError: if none of its cases can be used.
    """
    if isinstance(study.data, Table):
        return list(_rows(study, module, place, name, secret, own))
    observed = list(_images(study, module, unlabelled_index(study, place, name, own, secret)))
    if all(case.content is None for case in observed):
        raise DataError(
            f"hospital '{name}': none of {len(observed)} cases can be used; `medfed check` says why"
        )
    return observed


def one_per_patient(cases: Sequence[Observation]) -> list[Observation]:
    """Return one case of each patient: the one with the smallest token, which nobody chose."""
    chosen: dict[str, Observation] = {}
    for case in sorted(cases, key=lambda case: case.token):
        chosen.setdefault(case.patient, case)
    return list(chosen.values())


# ------------------------------------------------------------------------------------------------- tables


def _rows(
    study: Study, module: LightningModule, place: Path, name: str, secret: bytes, own: OwnChoices
) -> Iterator[Observation]:
    settings = study.data
    assert isinstance(settings, Table)
    try:
        # Without the column to predict; the network never sees it. And with the rows that the study drops for
        # an empty cell: that there are more of them is a change, too.
        plain = msgspec.structs.replace(settings, missing="median")
        rows = read_inputs(place, plain, site_secret=secret, own_headings=own.data.headings)
    except DataError as error:
        raise type(error)(f"site '{name}': {error}") from None
    scaling, _ = fit_scaling(rows, plain)
    inputs = torch.from_numpy(network_inputs(rows, scaling, plain))
    trained = _trained_contents(study, place, name, secret, own)
    for position, case in enumerate(rows.index.cases):
        with torch.inference_mode():
            outputs = module.predict_step({"features": inputs[position][None], "case": [case.token]}, 0)
        numbers, words = rows.numbers[position].tolist(), rows.words[position].tolist()
        is_dropped = settings.missing == "drop" and bool(np.isnan(numbers).any())
        values = _cells(settings, numbers, words) | ({} if is_dropped else _outputs(study, outputs))
        content = hashlib.sha256(repr((case.patient, numbers, words)).encode()).digest()
        yield Observation(case.token, case.patient, values, content, trained.get(case.token))


def _trained_contents(
    study: Study, place: Path, name: str, secret: bytes, own: OwnChoices
) -> dict[str, bytes]:
    """Return the digest of each row by which trained.json knows it; none where targets are lacking."""
    try:
        alone = study.in_fold(None)
        return contents_of(hospital_of(alone, name, str(place), secret, own=own.data).data)
    except DataError:
        return {}


def _cells(settings: Table, numbers: Sequence[float], words: Sequence[float]) -> dict[str, Value]:
    """Return a row's numbers and words by the names of their variables."""
    values: dict[str, Value] = {
        f"column {one}": None if np.isnan(x) else x for one, x in zip(settings.numbers, numbers, strict=True)
    }
    start = 0
    for one, known in settings.categorical.items():
        marks = list(words[start : start + len(known)])
        values[f"column {one}"] = known[marks.index(1.0)] if 1.0 in marks else None
        start += len(known)
    return values


def _outputs(study: Study, outputs: Mapping[str, Any]) -> dict[str, Value]:
    """Return a single case's outputs as values; of a segmentation there are none here."""
    if study.task.predicts == "survival":
        return {"log risk": float(outputs["risk"][0])}
    classes = tuple(getattr(study.task, "classes", ()))
    probabilities = outputs["probabilities"][0].tolist()
    return {f"probability of {one}": p for one, p in zip(classes, probabilities, strict=True)}


# ------------------------------------------------------------------------------------------------- images


def _images(study: Study, module: LightningModule, index: Index) -> Iterator[Observation]:
    settings, rows = study.data, index.rows
    assert isinstance(settings, Images)
    beside = columns_beside(index, settings)
    for case in rows.dropped if rows is not None else ():
        yield Observation(case.token, case.patient, {FILES.name: FILES.words[1]})
    for case in index.cases:
        try:
            if rows is not None:
                rows.check(case)
            values, content = _image(study, module, case, beside(case))
        except (ImageError, TableRowError):
            yield Observation(case.token, case.patient, {FILES.name: FILES.words[1]})
            continue
        if rows is not None and settings.table is not None:
            values |= _cells(settings.table.as_table, rows.numbers[case.token], rows.words[case.token])
        yield Observation(case.token, case.patient, values, content, content)


def _image(
    study: Study, module: LightningModule, case: Case, beside: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Value], bytes]:
    """Return one image's values, and the digest of what the network sees."""
    settings: Any = study.data
    # Its label, if it has one, is neither read nor checked.
    volume, _ = read_case(replace(used_part(case, "classify"), target=None), settings, None)
    with naming(case):
        prepared = prepare(volume, None, settings)
        values: dict[str, Value] = {
            FILES.name: FILES.words[0],
            **image_values(volume.array, volume.spacing_mm, channels_of(settings)),
        }
    image = prepared.image
    if study.task.needs in WHOLE_IMAGE_NEEDS:
        image = whole_input(image, settings)
    batch = {"image": torch.from_numpy(np.array(image, np.float32))[None], "case": [case.token], **beside}
    with torch.inference_mode():
        outputs = module.predict_step(batch, 0)
    if study.task.predicts != "segment":
        return values | _outputs(study, outputs), image_digest(prepared.image)
    restored = restore(outputs["probabilities"][0].cpu().numpy(), prepared, nearest=False)
    task: Any = study.task
    voxel_ml = None if in_pixels(volume) else voxel_ml_of(volume.affine_ras)
    labels = final_labels(task, torch.as_tensor(restored), voxel_ml)
    size = _voxel_size(volume, labels.shape[-1] == 1)
    for number, structure in list(enumerate(task.classes))[1:]:
        values[f"volume of {structure}"] = float((labels == number).sum()) * size
    return values, image_digest(prepared.image)


def _voxel_size(volume: Volume, plane: bool) -> float:
    """Return a voxel's volume in ml; of a plane its area in mm2, or 1 px without a size in mm."""
    if in_pixels(volume):
        return 1.0
    sides = np.linalg.norm(volume.affine_ras[:3, :3], axis=0)
    return float(sides[:2].prod()) if plane else float(sides.prod()) / 1000.0
