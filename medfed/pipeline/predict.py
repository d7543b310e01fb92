"""Predict a hospital's cases with a run's model: masks as NIfTI, and as DICOM SEG if the images are DICOM.

The mask of a picture without a size in mm (PNG, JPEG) is a PNG of its size, whose pixels are class numbers.

Everything is written in the hospital, to a folder that the operator chooses. A NIfTI file is named after the
case's token, and its header holds only the grid. A DICOM SEG refers to its source series, as a PACS requires,
and so names that series' patient: it is as confidential as the images. `stays-in-hospital.csv` maps tokens to
patients.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule

from medfed.data.batch_needs import WHOLE_IMAGE_NEEDS
from medfed.data.case import Case
from medfed.data.case_table import case_inputs, with_table
from medfed.data.channels import match_channels, with_own_names
from medfed.data.datamodule import SiteDataModule
from medfed.data.datamodules import DataModule
from medfed.data.dataset import prepare_case
from medfed.data.harmonise import check_own_scale
from medfed.data.index import Index, index_folder
from medfed.data.layouts import Layout, Survey, layouts
from medfed.data.layouts.pattern import Pattern
from medfed.data.own_dataset import OwnDataset, index_own
from medfed.data.refusals import TableRowError, reason_of
from medfed.data.samplers import collate
from medfed.data.screening import image_digest
from medfed.data.settings import Images, Table
from medfed.data.splits import simulated_secret
from medfed.data.table import read_inputs
from medfed.data.transforms import Prepared, restore, whole_input
from medfed.data.whole_images import check_whole_size, prepared_extent
from medfed.errors import DataError, ImageError, MedfedError, RunError
from medfed.evaluation.inference import SiteCases, batches, is_plane, voxel_ml_of
from medfed.evaluation.rows import FEDERATED
from medfed.evaluation.survival import survival_probability
from medfed.files import private_files, private_folder, write_whole
from medfed.models.tasks._connected_components import final_labels
from medfed.pipeline.baseline import read_baselines
from medfed.pipeline.create_run import check_empty, open_run
from medfed.pipeline.dicom_seg import dicom_segmentation
from medfed.pipeline.factory import own_data_at, size_check
from medfed.pipeline.guaranteed_threshold import Decision, decision_of, write_said
from medfed.pipeline.measure_models import all_cases_of, module_with, saved_models
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.seen_cases import inputs_of
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.pipeline.whose_patients import check_folder, check_whose, guaranteed_name
from medfed.registry import kind_of
from medfed.runs.folder import RunFolder
from medfed.study.study import Study

KEY = "stays-in-hospital.csv"
TABLE = "predictions.csv"
EMPTY_NUMBER = "not predicted: an empty number in the table"


@private_files()
def predict(
    run: str | Path | RunFolder,
    data: str | Path,
    out: str | Path,
    *,
    model: str = FEDERATED,
    name: str = "evaluated",
    layout: Layout | None = None,
    own: OwnChoices | None = None,
    guarantee: str | None = None,
) -> Path:
    """Write a run's predictions for every case of a hospital's folder into `out`, and return `out`.

    Labels and targets are not needed, and ignored if they exist; a table needs the columns of its features.
    A 2D study takes a folder of pictures side by side, too: each is a case. One case is in memory at a time.
    `own` is what the hospital says of its data in its site file; with it, tokens are those of its training.

    With a `guarantee`, such as "found" or "found:liver", a mask is of one structure, and a class is called,
    at the threshold that hospital `name` may rely on; `guarantee.txt` says what it keeps, and whether the run
    knows these patients as that hospital's.

    Raises:
        RunError: if this is not a run folder, it has no such model, `out` is not empty, or the hospital has
            no threshold of the guarantee, or the patients are another hospital's.
        StudyError: if the study guarantees nothing of the kind.
        DataError, ImageError: if the folder's cases cannot be used; it names a case by its token.
    """
    folder, _, study = open_run(run)
    out = Path(out)
    check_empty(out, "give another folder for the predictions")
    chosen, decision = own or OwnChoices(), None
    if guarantee is not None:
        if model != FEDERATED:
            raise RunError(f"guarantees are of the federated model, not of '{model}'; leave the model out")
        whose = guaranteed_name(name, chosen.name)
        decision = decision_of(study, folder, whose, guarantee)
        check_folder(study, Path(data), whose)
    private_folder(out)
    contents: list[bytes] = []
    module = load_model(study, folder, model)
    study = chosen.as_read_here(study).in_fold(None)
    secret = chosen.secret or simulated_secret(study.seed, name)
    with suppress_warnings():
        if isinstance(study.data, Images):
            given = replace(chosen, layout=layout or chosen.layout)
            index = unlabelled_index(study, Path(data), name, given, secret)
            cases: Sequence[Case] = index.cases
            lines = list(_predict_images(study, module, index, out, decision, contents))
        elif isinstance(study.data, DataModule):
            cases = index_own(data, study.data, secret).cases
            lines = list(_predict_own(study, module, cases, out, decision, contents))
        else:
            hospital, dropped = unlabelled_table(study, Path(data), name, chosen, secret)
            cases = (*all_cases_of(hospital), *dropped)
            contents += inputs_of(hospital.data).values()
            lines = list(_predict_rows(study, module, hospital, read_baselines(folder).get(model, {})))
            lines += [{"case": case.token, "note": f"{EMPTY_NUMBER} (data.missing)"} for case in dropped]
    if decision is not None:
        lines = [decision.columns(line) for line in lines]
        write_said(decision, _whose(folder, contents, whose, out), out)
    _write_csv(out / TABLE, lines)
    _write_csv(out / KEY, [{"token": case.token, "case": case.id, "patient": case.patient} for case in cases])
    return out


def _whose(folder: RunFolder, contents: Sequence[bytes], name: str, out: Path) -> str:
    """Return whose patients these are; without a guarantee's right to them, nothing of it stays in `out`."""
    try:
        return check_whose(folder, contents, name)
    except RunError:
        for written in out.iterdir():
            written.unlink()
        raise


def unlabelled_index(study: Study, data: Path, name: str, own: OwnChoices, secret: bytes) -> Index:
    """Return the cases of a hospital's folder of images, whose labels do not matter.

    Raises:
        DataError: if the folder's cases cannot be used.
    """
    settings = study.data
    assert isinstance(settings, Images)
    index = index_folder(
        data,
        site_secret=secret,
        fractions=settings.fractions,
        layout=own.layout or _pictures_alone(data, settings) or settings.given_layout,
    )
    words = own_data_at(study, name, str(data), own.data)
    index = match_channels(with_own_names(index, words.channels), settings)
    return with_table(index, settings.table, words)


def unlabelled_table(
    study: Study, data: Path, name: str, own: OwnChoices, secret: bytes
) -> tuple[SiteCases, tuple[Case, ...]]:
    """Return the patients of a hospital's table, whose outcomes do not matter, and those it drops.

    Raises:
        DataError: if the table cannot be used; it names the hospital.
    """
    settings = study.data
    assert isinstance(settings, Table)
    headings = own_data_at(study, name, str(data), own.data).headings
    try:
        rows = read_inputs(data, settings, site_secret=secret, own_headings=headings)
        check_own_scale(rows.index.cases, settings.standardise)
    except DataError as error:
        raise type(error)(f"site '{name}': {error}") from None
    return SiteCases(name, SiteDataModule(rows, settings, study.task.needs), secret), rows.dropped


# The formats of pictures, as a survey of a folder calls them.
PICTURES = ("png", "jpeg", "tiff")


def _pictures_alone(folder: Path, settings: Images) -> Layout | None:
    """Return the layout of a folder that holds only pictures of one kind, side by side; None of others.

    To learn from such a folder is refused, as it has no labels; to predict, each picture is a case.
    """
    if settings.spatial_dims != 2 or not folder.is_dir():
        return None
    survey = Survey.of(folder)
    suffixes = {file.path.suffix for file in survey.files}
    pictures = all(file.format in PICTURES and len(file.parts) == 1 for file in survey.files)
    if not pictures or len(suffixes) != 1 or any(one.evidence(survey) is not None for one in layouts()):
        return None
    return Pattern(image="{case}" + suffixes.pop())


def load_model(study: Study, folder: RunFolder, model: str) -> LightningModule:
    """Return the study's module with one of a run's saved models, ready to predict.

    Raises:
        RunError: if the run has no such model, or it is incomplete without a hospital's own layers.
    """
    saved = saved_models(folder)
    if model not in saved:
        names = ", ".join(sorted(saved)) or "none yet"
        folds = folder.read_facts().folds
        where = (
            f"; the models of its {folds.of} folds are in fold-1 and so on, their mean in ensemble"
            if folds
            else ""
        )
        raise RunError(f"{folder.path}: no model '{model}'; there are {names}{where}")
    if study.keep_local and model == FEDERATED:
        raise RunError(
            f"{folder.path}: the federated model of this study is complete only with the layers that each "
            f"hospital kept ({', '.join(study.keep_local)}); choose another of its models"
        )
    return module_with(study, saved[model]).eval()


def _predict_images(
    study: Study,
    module: LightningModule,
    index: Index,
    out: Path,
    decision: Decision | None,
    contents: list[bytes],
) -> Iterator[dict[str, object]]:
    settings, task = study.data, study.task
    assert isinstance(settings, Images)
    if settings.table is not None:
        check_own_scale(index.cases, settings.table.standardise)
    beside, check_size = columns_beside(index, settings), size_check(study)
    for case in index.rows.dropped if index.rows is not None else ():
        yield {"case": case.token, "note": f"{EMPTY_NUMBER} (data.table.missing)"}
    for case in index.cases:
        try:
            if index.rows is not None:
                index.rows.check(case)
            prepared = prepare_case(case, settings, "classify", None)
            check_whole_size(prepared_extent(prepared, settings), settings, check_size)
        except (ImageError, TableRowError) as error:
            yield {"case": case.token, "note": f"not predicted: {reason_of(error)}"}
            continue
        contents.append(image_digest(prepared.image))
        image = np.array(prepared.image, np.float32)
        if task.needs in WHOLE_IMAGE_NEEDS:
            image = whole_input(image, settings)
        with torch.inference_mode():
            outputs = module.predict_step(
                {"image": torch.from_numpy(image)[None], "case": [case.token], **beside(case)}, 0
            )
        if task.predicts == "segment":
            restored = restore(outputs["probabilities"][0].cpu().numpy(), prepared, nearest=False)
            sized = None if prepared.in_pixels else prepared.original_affine_ras
            labels = _labels(task, restored, decision, sized)
            if is_plane(settings):
                line = _write_plane(task, labels[..., 0], prepared, case, out)
            else:
                line = _write_masks(task, labels, prepared.original_affine_ras, case, out)
        else:
            line = _values(task, outputs)
        yield {"case": case.token, **line}


def _labels(
    task: Any,
    probabilities: NDArray[np.floating],
    decision: Decision | None,
    affine_ras: NDArray[np.floating] | None,
) -> NDArray[np.integer]:
    """Return the labels (X, Y, Z) of probabilities (classes, X, Y, Z): the likeliest, or what is decided.

    `affine_ras` is that of the voxels, None where they have no size.
    """
    if decision is not None:
        return decision.mask(probabilities)
    voxel_ml = None if affine_ras is None else voxel_ml_of(affine_ras)
    return final_labels(task, torch.as_tensor(probabilities), voxel_ml)


def columns_beside(index: Index, settings: Images) -> Callable[[Case], dict[str, torch.Tensor]]:
    """Return what gives a case's part of a batch that comes from the table beside the images, if any."""
    if settings.table is None:
        return lambda case: {}
    inputs, _ = case_inputs(index, settings.table, index.cases)
    return lambda case: {"tabular": inputs[case.token][None]}


def _values(task: Any, outputs: Mapping[str, Any]) -> dict[str, object]:
    """Return what is predicted for a batch's only case: probabilities, or a task's own outputs."""
    if task.predicts != "other":
        probabilities = outputs["probabilities"][0].tolist()
        return {f"probability of {name}": p for name, p in zip(task.classes, probabilities, strict=True)}
    values: dict[str, object] = {}
    for name, output in outputs.items():
        value = output[0].tolist() if isinstance(output, torch.Tensor) else output[0]
        numbered = {f"{name} {k}": one for k, one in enumerate(value)} if isinstance(value, list) else {}
        values |= numbered or {name: value}
    if any(isinstance(value, (list, dict, torch.Tensor)) for value in values.values()):
        raise RunError(
            f"task '{kind_of(task)}' predicts arrays; medfed predict writes numbers, and the masks of a "
            "segmentation"
        )
    return values


def _predict_rows(
    study: Study, module: LightningModule, hospital: SiteCases, baseline: Mapping[float, float]
) -> Iterator[dict[str, object]]:
    for batch in batches(hospital.data, all_cases_of(hospital)):
        with torch.inference_mode():
            outputs = module.predict_step(batch, 0)
        if study.task.predicts == "survival":
            risk = float(outputs["risk"][0])
            line: dict[str, object] = {"log risk": risk}
            for time, hazard in baseline.items():
                line[f"survival beyond {time:g}"] = survival_probability(hazard, risk)
        else:
            line = _values(study.task, outputs)
        yield {"case": batch["case"][0], **line}


def _predict_own(
    study: Study,
    module: LightningModule,
    cases: Sequence[Case],
    out: Path,
    decision: Decision | None,
    contents: list[bytes],
) -> Iterator[dict[str, object]]:
    """Yield the predictions of cases that the study's own data module reads; masks are on its items' grid.

    The digests of their content are added to `contents`.
    """
    settings, task = study.data, study.task
    assert isinstance(settings, DataModule)
    dataset = OwnDataset(tuple(cases), settings, task.needs, training=False, answers=False)
    for case in cases:
        try:
            item = dataset.whole(case)
        except ImageError as error:
            yield {"case": case.token, "note": f"not predicted: {reason_of(error)}"}
            continue
        contents.append(image_digest(item["image" if "image" in item else "features"].numpy()))
        affine_ras = item.pop("affine_ras", None)
        with torch.inference_mode():
            outputs = module.predict_step(collate([item]), 0)
        if task.predicts != "segment":
            yield {"case": case.token, **_values(task, outputs)}
            continue
        sized = None if affine_ras is None else np.asarray(affine_ras, np.float64)
        labels = _labels(task, outputs["probabilities"][0].cpu().numpy(), decision, sized)
        if sized is not None:
            line = _write_masks(task, labels, sized, case, out)
        else:
            line = _write_nifti(task, labels, np.eye(4), case, out)
        yield {"case": case.token, **line}


def mask_dtype(classes: int) -> type[np.integer[Any]]:
    """Return the smallest type of NIfTI that holds this many classes, counted from 0."""
    return np.uint8 if classes <= 1 << 8 else np.int16 if classes <= 1 << 15 else np.int32


def _write_plane(
    task: Any, labels: NDArray[np.integer], prepared: Prepared, case: Case, out: Path
) -> dict[str, object]:
    """Write the mask (X, Y) of one plane and return its line: a PNG for a picture, else NIfTI."""
    affine_ras = prepared.original_affine_ras
    if prepared.in_pixels and len(task.classes) <= 256:
        from PIL import Image

        # A picture's rows are Y. Pixels hold class numbers, so a viewer shows them nearly black.
        data = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(labels.T, np.uint8)).save(data, "PNG")
        write_whole(out / f"{case.token}.png", data.getvalue())
        line: dict[str, object] = {"file": f"{case.token}.png"}
    else:
        line = _write_nifti(task, labels[..., None], affine_ras, case, out)
    area_mm2 = float(np.prod(np.linalg.norm(affine_ras[:3, :2], axis=0)))
    for number, structure in list(enumerate(task.classes))[1:]:
        pixels = int((labels == number).sum())
        if prepared.in_pixels:
            line[f"{structure} px"] = pixels
        else:
            line[f"{structure} mm2"] = round(pixels * area_mm2, 4)
    if not prepared.in_pixels:
        line |= _write_dicom(task, labels[..., None], affine_ras, case, out)
    return line


def _write_nifti(
    task: Any, labels: NDArray[np.integer], affine_ras: NDArray[np.float64], case: Case, out: Path
) -> dict[str, object]:
    import nibabel

    # The file identifies its patient by the token alone: it has no description and no source file's name.
    nibabel.save(
        nibabel.Nifti1Image(  # type: ignore[no-untyped-call]  # nibabel has no types
            labels.astype(mask_dtype(len(task.classes))), affine_ras
        ),
        out / f"{case.token}.nii.gz",
    )
    return {"file": f"{case.token}.nii.gz"}


def _write_masks(
    task: Any, labels: NDArray[np.integer], affine_ras: NDArray[np.float64], case: Case, out: Path
) -> dict[str, object]:
    line = _write_nifti(task, labels, affine_ras, case, out)
    voxel_ml = voxel_ml_of(affine_ras)
    for number, structure in list(enumerate(task.classes))[1:]:
        line[f"{structure} ml"] = round(int((labels == number).sum()) * voxel_ml, 4)
    return line | _write_dicom(task, labels, affine_ras, case, out)


def _write_dicom(
    task: Any, labels: NDArray[np.integer], affine_ras: NDArray[np.float64], case: Case, out: Path
) -> dict[str, object]:
    """Write a DICOM SEG beside the mask if the images are DICOM; return its name, or why there is none."""
    line: dict[str, object] = {"dicom": "", "note": ""}
    try:
        segmentation = dicom_segmentation(labels, affine_ras, case, task.classes)
    except MedfedError as error:
        line["note"] = str(error)
        return line
    if segmentation is not None:
        data = io.BytesIO()
        segmentation.save_as(data)
        write_whole(out / f"{case.token}.dcm", data.getvalue())
        line["dicom"] = f"{case.token}.dcm"
    return line


def _write_csv(path: Path, lines: Sequence[dict[str, object]]) -> None:
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    # A case may be called as its file, whose name may hold bytes that are no UTF-8.
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))
