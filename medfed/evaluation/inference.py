"""One model on one hospital's cases: rows per case, which stay in that hospital.

A segmentation is measured on the image's own grid and in its own millimetres: the prediction on the study's
grid is resampled back first, so that resampling can't flatter a score.

A task is measured by its `metrics`, families of metrics from `PredictionMetrics`. A task that
names none is measured by the metrics of its `needs`, and its `predict_step` returns
"probabilities", or "risk" for survival.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medfed.data.batch_needs import IMAGE_NEEDS, WHOLE_IMAGE_NEEDS
from medfed.data.datamodules import DataModule
from medfed.data.planes import in_pixels
from medfed.data.settings import AnyData, Images
from medfed.data.splits import SPLITS, case_token
from medfed.errors import StudyError
from medfed.evaluation import robustness, segmentation
from medfed.evaluation.conformal import GRID
from medfed.evaluation.guarantees import COVERED, FOUND, MISSED_AT
from medfed.evaluation.metrics import CasePrediction, PredictionMetrics, measure_masks
from medfed.evaluation.patients import FINDING, PROBABILITY, RISK, SURVIVAL
from medfed.evaluation.report.gallery import CaseImages
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.survival import survival_probability
from medfed.models.tasks._connected_components import final_labels
from medfed.registry import kind_of, kinds

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

    from medfed.data.case import Case
    from medfed.data.datamodule import SiteDataModule
    from medfed.models.tasks import Task

# Ages are given in bands: an exact age beside sex and scanner can identify a patient of a small hospital.
AGE_BAND_YEARS = 20

# The share of a structure's voxels that are to reach a guaranteed threshold (`guarantees.COVERED`).
COVERED_SHARE = 0.9

# The attributes that subgroups are made of. Nothing else of a hospital's table is copied anywhere.
SUBGROUPS = ("sex", "scanner")


@dataclass(frozen=True)
class SiteCases:
    """One hospital's data, the key of its patients' tokens, and which cases trained the model."""

    name: str
    data: SiteDataModule
    secret: bytes = field(repr=False)
    seen: frozenset[str] = frozenset()

    def unseen(self, cases: Sequence[Case]) -> list[Case]:
        """Return those of the cases that did not train the model."""
        return [case for case in cases if case.token not in self.seen]

    def patient(self, case: Case) -> str:
        """Return the token of a case's patient."""
        return case_token(self.secret, f"patient/{case.patient}")


# Labels of a hospital that are cached between models take at most this much; the others are read again.
MAX_CACHED_BYTES = 512 * 1024**2


class Reference(NamedTuple):
    """A case's label (X, Y, Z), or (X, Y) of a plane, as small integers, and its spacing.

    `unit` is that of the spacing: "px" where the files give no size in mm.
    """

    label: NDArray[np.integer]
    spacing_mm: tuple[float, ...]
    unit: segmentation.Unit = "mm"

    @property
    def voxel_ml(self) -> float | None:
        """A voxel's volume; None of a plane, or without a size in mm."""
        has_volume = self.unit == "mm" and len(self.spacing_mm) == 3
        return float(np.prod(self.spacing_mm)) / 1000.0 if has_volume else None


def voxel_ml_of(affine_ras: NDArray[np.floating]) -> float:
    """Return a voxel's volume."""
    return abs(float(np.linalg.det(affine_ras[:3, :3]))) / 1000.0


class LabelCache:
    """The labels of a hospital's cases on their own grids, read once per case within MAX_CACHED_BYTES."""

    def __init__(self, hospital: SiteCases) -> None:
        self.hospital = hospital
        self._labels: dict[str, Reference] = {}
        self._bytes = 0
        self._bands: dict[str, str] = {}

    def reference(self, case: Case) -> Reference:
        """Return a case's label and its spacing."""
        if case.token in self._labels:
            return self._labels[case.token]
        image, label = self.hospital.data.original(case)
        assert label is not None
        small = label.array[0]  # in the smallest type that holds its classes
        spacing_mm = segmentation.spacing_of(image.affine_ras)
        if is_plane(self.hospital.data.settings):
            # As a volume of one slice, all voxels would be on the structure's surface.
            small, spacing_mm = small[..., 0], spacing_mm[:2]
        reference = Reference(small, spacing_mm, "px" if in_pixels(image) else "mm")
        if self._bytes + small.nbytes <= MAX_CACHED_BYTES:
            self._labels[case.token] = reference
            self._bytes += small.nbytes
        return reference

    def spacing(self, case: Case) -> dict[str, str]:
        """Return the subgroup of an image's own spacing; nothing for a row of a table."""
        data = self.hospital.data
        if data.needs not in IMAGE_NEEDS or isinstance(data.settings, DataModule):
            return {}
        if case.token not in self._bands:
            prepared = self.hospital.data.prepared(case)
            axes = 2 if is_plane(self.hospital.data.settings) else 3
            spacing_mm = np.linalg.norm(prepared.original_affine_ras[:3, :axes], axis=0).tolist()
            self._bands[case.token] = "" if prepared.in_pixels else spacing_band(spacing_mm)
        band = self._bands[case.token]
        return {"spacing": band} if band else {}


def is_plane(settings: AnyData) -> bool:
    """Whether the images of a study are single planes, such as radiographs."""
    return isinstance(settings, Images) and settings.axes is None


# Images with slices up to this are thin-sliced, as radiologists call them.
MAX_THIN_MM = 2.0


def spacing_band(spacing_mm: Sequence[float]) -> str:
    """Return the subgroup of an image's widest spacing."""
    widest = max(spacing_mm)
    if widest <= MAX_THIN_MM:
        return f"up to {MAX_THIN_MM:g} mm"
    return "above 2 to 5 mm" if widest <= 5.0 else "above 5 mm"


class MeasurementSettings(NamedTuple):
    """What labels the rows of a measurement, and how it is made.

    With a `baseline` (time -> cumulative hazard) a survival model also gives the probability of
    living beyond each time. With a `condition` of `robustness`, each case is perturbed so first;
    `seed` determines its noise.
    """

    model: str
    split: str
    tolerance_mm: float = 2.0
    condition: str | None = None
    seed: int = 0
    baseline: Mapping[float, float] | None = None


def measure(
    task: Task,
    module: LightningModule,
    cases: Sequence[Case],
    labels: LabelCache,
    settings: MeasurementSettings,
) -> Iterator[CaseRow]:
    """Yield the rows of these cases of a hospital, one case at a time, so that memory is that of one image.

    Raises:
        StudyError: if the task's metrics are not registered, or its module predicts something else.
    """
    module.eval()
    device = next(itertools.chain(module.parameters(), module.buffers())).device
    by_token = {case.token: case for case in cases}
    data = labels.hospital.data
    families = _prediction_metrics(task)
    for batch in perturbed_batches(task, data, cases, settings.condition, settings.seed):
        moved = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
        with torch.inference_mode():
            outputs = module.predict_step(moved, 0)
        for index, token in enumerate(batch["case"]):
            prediction = CasePrediction(_single(outputs, index), _single(batch, index))
            case = by_token[token]
            about = _about(case, labels, settings)
            if task.metrics:
                yield from _measured(families, prediction, about)
            elif task.needs == "segment":
                probabilities = _output(task, prediction, "probabilities").numpy()
                restored = data.restored(probabilities, case, nearest=False)
                yield from _segmented(task, restored, labels.reference(case), settings.tolerance_mm, about)
            elif task.needs == "survival":
                yield from _survival(task, prediction, settings.baseline or {}, about)
            elif task.needs == "multilabel":
                yield from _findings(task, prediction, about)
            else:
                yield from _classified(task, prediction, about)


def measure_scores(
    task: Any,
    module: LightningModule,
    cases: Sequence[Case],
    labels: LabelCache,
    settings: MeasurementSettings,
) -> Iterator[CaseRow]:
    """Yield the scores of a segmentation, for `guarantees`: of each structure that a case's reference has.

    They are the largest probability inside the structure, the one that nine tenths of it reach, and the share
    of its voxels below each threshold at which that share changes.
    """
    module.eval()
    device = next(itertools.chain(module.parameters(), module.buffers())).device
    data = labels.hospital.data
    by_token = {case.token: case for case in cases}
    for batch in batches(data, cases):
        with torch.inference_mode():
            outputs = module.predict_step({**batch, "image": batch["image"].to(device)}, 0)
        for index, token in enumerate(batch["case"]):
            case = by_token[token]
            probabilities = outputs["probabilities"][index].cpu().numpy()
            restored = data.restored(probabilities, case, nearest=False)
            label = labels.reference(case).label
            restored = restored[..., 0] if label.ndim == 2 else restored
            for number in task.labelled_at(labels.hospital.name):
                inside = restored[number][label == number]
                if inside.size:
                    about = {**_about(case, labels, settings), "structure": task.classes[number]}
                    share = float(np.quantile(inside, 1 - COVERED_SHARE, method="lower"))
                    yield CaseRow(metric=FOUND, value=_probability(inside.max()), **about)
                    yield CaseRow(metric=COVERED, value=_probability(share), **about)
                    for threshold, missed in _missed_at(inside):
                        yield CaseRow(metric=f"{MISSED_AT}{threshold:g}", value=missed, **about)


def _missed_at(probabilities: NDArray[np.floating]) -> Iterator[tuple[float, float]]:
    """Yield the least threshold and those at which the share of probabilities below changes, with it."""
    before = -1.0
    ordered = np.sort(probabilities.astype(np.float64), axis=None)
    for threshold in GRID:
        missed = float(np.searchsorted(ordered, threshold, side="left") / ordered.size)
        if missed != before:
            yield threshold, missed
            before = missed


def _probability(value: float) -> float:
    """Return a probability without the rounding of resampling, which may leave 0 to 1."""
    return min(max(float(value), 0.0), 1.0)


def _about(case: Case, labels: LabelCache, settings: MeasurementSettings) -> dict[str, Any]:
    """Return the fields that all rows of a case have in common."""
    return {
        "model": settings.model,
        "site": labels.hospital.name,
        "split": settings.split,
        "case": case.token,
        "patient": labels.hospital.patient(case),
        "attributes": {**attributes(case.attributes), **labels.spacing(case)},
        "condition": settings.condition,
    }


def _prediction_metrics(task: Task) -> list[PredictionMetrics]:
    """Return the families of metrics that a task names.

    Raises:
        StudyError: if one of them is not registered, or is none of predictions.
    """
    families = []
    for name in task.metrics:
        family = kinds("metrics").get(name)
        if family is None or not issubclass(family, PredictionMetrics):
            raise StudyError(
                f"task '{kind_of(task)}': metrics: '{name}' is not a family of prediction metrics; "
                f"register a subclass of medfed.evaluation.metrics.PredictionMetrics under this name"
            )
        families.append(family())
    return families


def _single(batch: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return one case of a batch or of its outputs, without the batch axis, on the CPU."""
    single = {
        key: value[index] if isinstance(value, (torch.Tensor, list, tuple)) else value
        for key, value in batch.items()
    }
    return {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in single.items()}


def _output(task: Task, prediction: CasePrediction, name: str) -> torch.Tensor:
    """Return an output that a task of its needs predicts.

    Raises:
        StudyError: if the module's `predict_step` returned something else.
    """
    if name not in prediction.outputs:
        raise StudyError(
            f"task '{kind_of(task)}': predict_step returned {', '.join(sorted(prediction.outputs))}, "
            f"but a task that needs '{task.needs}' returns '{name}'; return it, or name the task's own "
            "families in `metrics`"
        )
    output: torch.Tensor = prediction.outputs[name]
    return output


def batches(data: SiteDataModule, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Yield these whole cases in batches of one, as the network validates on them."""
    from medfed.data.samplers import collate

    for split in SPLITS:
        wanted = {case.token for case in cases if case.split == split}
        if wanted:
            dataset: Any = data.dataset(split)
            for number, case in enumerate(dataset.cases):
                if case.token in wanted:
                    yield collate([dataset[number]])


def perturbations(task: Task, settings: AnyData) -> tuple[str, ...]:
    """Return the names of the perturbations under which a task's model is measured."""
    if task.needs in IMAGE_NEEDS and isinstance(settings, DataModule):
        return ()  # what a perturbed image would be, only the study's own code knows; its notes say so
    changes = robustness.IMAGE_CHANGES if task.needs in IMAGE_NEEDS else robustness.TABLE_CHANGES
    # A plane has no slices to lose.
    return tuple(name for name in changes if name != robustness.LOST_SLICES or not is_plane(settings))


def perturbed_batches(
    task: Task, data: SiteDataModule, cases: Sequence[Case], condition: str | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield these cases as `batches` does, each perturbed before it is prepared if there is a condition."""
    if condition is None:
        yield from batches(data, cases)
        return
    if task.needs in IMAGE_NEEDS:
        for batch in batches(data, cases):
            case = data.case(batch["case"][0])
            yield {**batch, "image": _perturbed_image(task, data, case, condition, seed)}
        return
    every = list(batches(data, cases))
    if every:
        features = torch.cat([batch["features"] for batch in every]).numpy()
        generator = np.random.default_rng(_seed(seed, condition, "table"))
        moved = torch.from_numpy(robustness.TABLE_CHANGES[condition](features, generator))
        for batch, one in zip(every, moved, strict=True):
            yield {**batch, "features": one[None]}


def _perturbed_image(task: Task, data: SiteDataModule, case: Case, condition: str, seed: int) -> torch.Tensor:
    from medfed.data.transforms import prepare, whole_input
    from medfed.data.volume import Volume

    image, _ = data.original(case)
    settings: Any = data.settings
    generator = np.random.default_rng(_seed(seed, condition, case.token))
    array = robustness.IMAGE_CHANGES[condition](image.array, image.spacing_mm, generator)
    prepared = prepare(Volume(array, image.affine_ras, image.info), None, settings).image
    if task.needs in WHOLE_IMAGE_NEEDS:
        prepared = whole_input(prepared, settings)
    return torch.from_numpy(np.ascontiguousarray(prepared, np.float32))[None]


def _seed(seed: int, *names: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join((str(seed), *names)).encode()).digest()[:8], "big")


def _segmented(
    task: Any,
    probabilities: NDArray[np.floating],
    reference: Reference,
    tolerance_mm: float,
    about: dict[str, Any],
) -> Iterator[CaseRow]:
    label = reference.label
    # A class that this hospital did not label has no reference here.
    structures = {number: task.classes[number] for number in task.labelled_at(about["site"])}
    predicted = final_labels(task, torch.as_tensor(probabilities), reference.voxel_ml)
    if label.ndim == 2:
        predicted = predicted[..., 0]
    if len(structures) < len(task.classes) - 1:
        predicted, label = (np.where(np.isin(a, list(structures)), a, 0) for a in (predicted, label))
    for measured in measure_masks(
        predicted, label, reference.spacing_mm, structures, tolerance_mm, unit=reference.unit
    ):
        yield CaseRow(**measured._asdict(), **about)


def _classified(task: Any, prediction: CasePrediction, about: dict[str, Any]) -> Iterator[CaseRow]:
    probabilities, target = _output(task, prediction, "probabilities"), int(prediction.batch["target"])
    for number, name in enumerate(task.classes):
        yield CaseRow(
            metric=PROBABILITY,
            value=float(probabilities[number]),
            structure=name,
            target=float(number == target),
            **about,
        )


def _findings(task: Any, prediction: CasePrediction, about: dict[str, Any]) -> Iterator[CaseRow]:
    probabilities, target = _output(task, prediction, "probabilities"), prediction.batch["target"]
    for number, name in enumerate(task.classes):
        known = bool(torch.isfinite(target[number]))
        yield CaseRow(
            metric=FINDING,
            value=float(probabilities[number]),
            structure=name,
            target=float(target[number]) if known else None,
            **about,
        )


def _survival(
    task: Task, prediction: CasePrediction, baseline: Mapping[float, float], about: dict[str, Any]
) -> Iterator[CaseRow]:
    time, event = (float(value) for value in prediction.batch["target"])
    risk = float(_output(task, prediction, "risk"))
    yield CaseRow(metric=RISK, value=risk, target=time, event=bool(event), **about)
    for at, hazard in baseline.items():
        value = survival_probability(hazard, risk)
        yield CaseRow(metric=f"{SURVIVAL}{at:g}", value=value, target=time, event=bool(event), **about)


def _measured(
    families: Sequence[PredictionMetrics], prediction: CasePrediction, about: dict[str, Any]
) -> Iterator[CaseRow]:
    """Yield the rows of a task that names its own families of metrics."""
    for family in families:
        for metric, (value, note) in family.measure(prediction).items():
            yield CaseRow(metric=metric, value=value, note=note, **about)


def attributes(table: Mapping[str, str]) -> dict[str, str]:
    """Return a case's sex, scanner and band of ages, as far as the hospital's table has them."""
    known = {name: table[name] for name in SUBGROUPS if table.get(name)}
    try:
        age = float(table.get("age", ""))
    except ValueError:
        return known
    low = int(age // AGE_BAND_YEARS * AGE_BAND_YEARS)
    return {**known, "age_band": f"{low}-{low + AGE_BAND_YEARS - 1}"}


def case_images(
    task: Any, module_at: Callable[[str], LightningModule], hospitals: Mapping[str, SiteCases]
) -> Callable[[str, str], CaseImages]:
    """Return the loader of the images that a gallery shows: a case's image, prediction and reference.

    `module_at` gives the model at a hospital, which has layers of its own where the study keeps some local.
    Only the cases that are shown are predicted again, one in memory at a time.
    """

    def load(site: str, token: str) -> CaseImages:
        data = hospitals[site].data
        case = data.case(token)
        (batch,) = batches(data, [case])
        module = module_at(site).eval()
        with torch.inference_mode():
            outputs = module.predict_step(batch, 0)
        restored = data.restored(outputs["probabilities"][0].cpu().numpy(), case, nearest=False)
        image, label = data.original(case)
        reference = np.zeros(image.shape, np.uint8) if label is None else label.array[0].astype(np.int32)
        voxel_ml = None if in_pixels(image) else voxel_ml_of(image.affine_ras)
        predicted = final_labels(task, torch.as_tensor(restored), voxel_ml)
        return CaseImages(image.array[0], predicted, reference, image.affine_ras)

    return load
