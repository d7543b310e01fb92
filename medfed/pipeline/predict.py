"""A run's model on a hospital's images: masks as NIfTI, and as DICOM SEG where the images are DICOM.

Everything is written in the hospital, into a folder that its operator names. A NIfTI file is called by the
case's token and its header says nothing but the grid. A DICOM SEG refers to the series it was made from, as a
PACS needs it, and so carries that series' patient: it is as confidential as the images.
`stays-in-hospital.csv` says which token is whose.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import medfed
from medfed.data.cache_location import files_below
from medfed.data.case import Case
from medfed.data.datamodule import SiteDataModule
from medfed.data.dataset import prepare_case
from medfed.data.dicom.file import is_dicom
from medfed.data.index import Index, index_folder
from medfed.data.settings import Images
from medfed.data.splits import SPLITS
from medfed.data.transforms import centre_crop, restore
from medfed.errors import MedfedError, RunError
from medfed.evaluation.inference import batches
from medfed.evaluation.rows import FEDERATED
from medfed.evaluation.survival import survival_probability
from medfed.files import write_whole
from medfed.pipeline.baseline import read_baselines
from medfed.pipeline.factory import hospital_of, module_of, simulated_secret
from medfed.pipeline.measure_models import saved_models
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.weights import load

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

KEY = "stays-in-hospital.csv"
TABLE = "predictions.csv"


def predict(
    run: str | Path | RunFolder,
    data: str | Path,
    out: str | Path,
    *,
    model: str = FEDERATED,
    name: str = "evaluated",
) -> Path:
    """Write a run's predictions for every case of a hospital's folder into `out`, and return `out`.

    Labels and targets aren't needed, and not looked at where they are there; a table needs its columns. One
    case is in memory at a time.

    Raises:
        RunError: if this is no run folder, it has no such model, or `out` is not empty.
        DataError, ImageError: if the folder's cases cannot be used, naming a case by its token.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    folder.read_facts()
    study = read_study(folder.study)
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty; give another folder for the predictions")
    out.mkdir(parents=True, exist_ok=True)
    module = trained(study, folder, model)
    secret = simulated_secret(study, name)
    with suppress_warnings():
        if isinstance(study.data, Images):
            index = index_folder(data, site_secret=secret, fractions=study.data.fractions)
            lines = list(_images(study, module, index, out))
            cases: Sequence[Case] = index.cases
        else:
            site = hospital_of(study, name, str(data), secret).data
            cases = [case for split in SPLITS for case in site.cases(split)]
            lines = list(_rows(study, module, site, cases, read_baselines(folder).get(model, {})))
    _write_csv(out / TABLE, lines)
    _write_csv(out / KEY, [{"token": case.token, "case": case.id, "patient": case.patient} for case in cases])
    return out


def trained(study: Study, folder: RunFolder, model: str) -> LightningModule:
    """Return the study's module with one of a run's saved models, ready to predict.

    Raises:
        RunError: if the run has no such model, naming those it has.
    """
    found = saved_models(folder)
    if model not in found:
        there = ", ".join(sorted(found)) or "none yet"
        raise RunError(f"{folder.path}: no model '{model}'; there are {there}")
    if study.keep_local and model == FEDERATED:
        raise RunError(
            f"{folder.path}: the federated model of this study is whole only with the layers that each "
            "hospital kept "
            f"({', '.join(study.keep_local)}); take another of its models"
        )
    module = module_of(study)
    load(module, found[model])
    return module.eval()


def _images(study: Study, module: LightningModule, index: Index, out: Path) -> Iterator[dict[str, object]]:
    settings, task = study.data, study.task
    assert isinstance(settings, Images)
    for case in index.cases:
        prepared = prepare_case(case, settings, "classify", None)
        image = np.array(prepared.image, np.float32)
        if task.needs == "classify" and settings.patch is not None:
            image = centre_crop(image, settings.patch, float(image.min()))
        with torch.inference_mode():
            found = module.predict_step({"image": torch.from_numpy(image)[None], "case": [case.token]}, 0)
        probabilities = found["probabilities"][0].cpu().numpy()
        line: dict[str, object] = {"case": case.token}
        if task.needs == "segment":
            back = restore(probabilities, prepared, nearest=False)
            labels = task.labels(torch.as_tensor(back)[None])[0, 0].numpy()  # type: ignore[attr-defined]
            line |= _write_masks(task, labels, prepared.original_affine_ras, case, out)
        else:
            line |= _probabilities(task, probabilities)
        yield line


def _probabilities(task: Any, probabilities: NDArray[np.floating]) -> dict[str, object]:
    return {f"probability of {name}": float(p) for name, p in zip(task.classes, probabilities, strict=True)}


def _rows(
    study: Study,
    module: LightningModule,
    site: SiteDataModule,
    cases: Sequence[Case],
    baseline: Mapping[float, float],
) -> Iterator[dict[str, object]]:
    for batch in batches(site, cases):
        with torch.inference_mode():
            found = module.predict_step(batch, 0)
        line: dict[str, object] = {"case": batch["case"][0]}
        if study.task.needs == "survival":
            risk = float(found["risk"][0])
            chances = {
                f"survival beyond {at:g}": survival_probability(hazard, risk)
                for at, hazard in baseline.items()
            }
            yield {**line, "log risk": risk, **chances}
        else:
            yield line | _probabilities(study.task, found["probabilities"][0].numpy())


def _write_masks(
    task: Any, labels: NDArray[np.integer], affine_ras: NDArray[np.float64], case: Case, out: Path
) -> dict[str, object]:
    import nibabel

    # The patient of a file is told by its token alone: no description, no name of a file that it came from.
    nibabel.save(
        nibabel.Nifti1Image(labels.astype(np.uint8 if len(task.classes) <= 256 else np.int16), affine_ras),
        out / f"{case.token}.nii.gz",
    )
    voxel_ml = abs(float(np.linalg.det(affine_ras[:3, :3]))) / 1000.0
    line: dict[str, object] = {"file": f"{case.token}.nii.gz"}
    for number, structure in list(enumerate(task.classes))[1:]:
        line[f"{structure} ml"] = round(int((labels == number).sum()) * voxel_ml, 4)
    line["dicom"], line["note"] = "", ""
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


def dicom_segmentation(
    labels: NDArray[np.integer], affine_ras: NDArray[np.float64], case: Case, classes: Sequence[str]
) -> Any:
    """Return a mask as a DICOM SEG on the slices of its source series, or None where the source is no DICOM.

    A voxel of a slice takes the label at its place in the patient, whatever the order or
    direction of the slices.

    Raises:
        RunError: the source is DICOM that a SEG is not written for here: several channels, or frames in one file.
    """
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    sources = source_slices(case)
    if not sources:
        return None
    frames = np.stack([on_slice(labels, affine_ras, source) for source in sources])
    if not frames.any():
        raise RunError("no structure was found, and an empty DICOM SEG says nothing; the NIfTI file is there")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="medfed", version=medfed.__version__, family=codes.DCM.ArtificialIntelligence
    )
    there = [number for number in range(1, len(classes)) if (frames == number).any()]
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=place,
            segment_label=classes[number][:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for place, number in enumerate(there, start=1)
    ]
    numbered = np.zeros_like(frames, dtype=np.uint8)
    for place, number in enumerate(there, start=1):
        numbered[frames == number] = place
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=numbered,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="medfed",
        manufacturer_model_name="medfed",
        software_versions=medfed.__version__,
        device_serial_number="none",
        series_description="medfed segmentation: not for clinical use",
        omit_empty_frames=True,
    )


def source_slices(case: Case) -> list[Any]:
    """Return the headers of a case's DICOM slices, in the order of their place, or
    nothing for another format.

    Raises:
        RunError: several channels, or a file of several frames.
    """
    import pydicom

    files = [
        file
        for path in case.image
        for file in (files_below(path) if path.is_dir() else [path])
        if is_dicom(file)
    ]
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    headers = [header for header in headers if "ImagePositionPatient" in header]
    if files and not headers:
        raise RunError("a DICOM file of several frames; its mask is written as NIfTI only")
    if len({header.SeriesInstanceUID for header in headers}) > 1:
        raise RunError("the image is of several series; its mask is written as NIfTI only")

    def place(header: Any) -> float:
        across, down = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
        return float(np.cross(across, down) @ np.asarray(header.ImagePositionPatient, float))

    return sorted(headers, key=place)


def on_slice(labels: NDArray[np.integer], affine_ras: NDArray[np.float64], header: Any) -> NDArray[np.uint8]:
    """Return (rows, columns) of one DICOM slice: the nearest label at each pixel's place, 0 outside the mask."""
    across, down = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
    row_mm, column_mm = (float(value) for value in header.PixelSpacing)
    rows, columns = np.mgrid[0 : int(header.Rows), 0 : int(header.Columns)]
    points = np.asarray(header.ImagePositionPatient, float) + (
        columns[..., None] * across * column_mm + rows[..., None] * down * row_mm
    )
    # DICOM counts to the patient's left and back, this affine to the right and front.
    points = points * np.array([-1.0, -1.0, 1.0])
    inverse = np.linalg.inv(affine_ras)
    voxels = np.floor(points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5).astype(int)
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(axis=-1)
    found = np.zeros(inside.shape, np.uint8)
    found[inside] = labels[tuple(voxels[inside].T)]
    return found


def _write_csv(path: Path, lines: Sequence[dict[str, object]]) -> None:
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, text.getvalue().encode())
