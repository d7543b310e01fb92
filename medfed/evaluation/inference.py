"""One model over one hospital's cases: rows a case, which stay in that hospital.

A segmentation is measured on the image's own grid and in its own millimetres: what the network predicted on
the study's grid is carried back first, so that resampling can't flatter a score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medfed.data.splits import SPLITS, case_token
from medfed.errors import StudyError
from medfed.evaluation import robustness, segmentation
from medfed.evaluation.metrics import CasePrediction, PredictionMetrics, measure_masks
from medfed.evaluation.report.gallery import CaseImages
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.survival import survival_probability
from medfed.registry import kind_of, kinds

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

    from medfed.data.case import Case
    from medfed.data.datamodule import SiteDataModule
    from medfed.models.tasks import Task

# Ages are told in bands: an exact age beside sex and scanner can name a patient of a small hospital.
AGE_BAND_YEARS = 20

# What of a case's attributes makes subgroups. Anything else in a hospital's table is not copied anywhere.
SUBGROUPS = ("sex", "scanner")


@dataclass(frozen=True)
class Hospital:
    """One hospital's data, and the key that names its patients in rows."""

    name: str
    data: SiteDataModule
    secret: bytes = field(repr=False)

    def patient(self, case: Case) -> str:
        """Return the token of a case's patient."""
        return case_token(self.secret, f"patient/{case.patient}")


# Labels of a hospital that are kept between models take at most so many bytes; the others are read again.
KEPT_BYTES = 512 * 1024**2


class References:
    """The labels of a hospital's cases on their own grids, read once a case as far as KEPT_BYTES hold them."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital
        self._read: dict[str, tuple[np.ndarray, tuple[float, ...]]] = {}
        self._bytes = 0
        self._bands: dict[str, str] = {}

    def of(self, case: Case) -> tuple[np.ndarray, tuple[float, ...]]:
        """Return a case's label (X, Y, Z), as small integers, and its spacing in mm."""
        if case.token in self._read:
            return self._read[case.token]
        image, label = self._hospital.data.original(case)
        assert label is not None
        classes = self._hospital.data.classes or 256
        small = label.array[0].astype(np.uint8 if classes <= 256 else np.int32)
        found = small, segmentation.spacing_of(image.affine_ras)
        if self._bytes + small.nbytes <= KEPT_BYTES:
            self._read[case.token] = found
            self._bytes += small.nbytes
        return found

    def spacing(self, case: Case) -> dict[str, str]:
        """Return the subgroup of an image's own spacing; nothing for a table's row."""
        if self._hospital.data.needs not in ("segment", "classify"):
            return {}
        if case.token not in self._bands:
            affine = self._hospital.data.prepared(case).original_affine_ras
            self._bands[case.token] = spacing_band(np.linalg.norm(affine[:3, :3], axis=0).tolist())
        return {"spacing": self._bands[case.token]}


# Slices thicker than this make an image a thick one, as radiologists count them.
THIN_MM = 2.0


def spacing_band(spacing_mm: Sequence[float]) -> str:
    """Return the subgroup of an image's widest spacing."""
    widest = max(spacing_mm)
    return (
        f"up to {THIN_MM:g} mm" if widest <= THIN_MM else "above 2 to 5 mm" if widest <= 5.0 else "above 5 mm"
    )


def measure(
    task: Task,
    module: LightningModule,
    hospital: Hospital,
    cases: Sequence[Case],
    *,
    split: str,
    model: str,
    references: References,
    tolerance_mm: float = 2.0,
    condition: str | None = None,
    seed: int = 0,
    baseline: Mapping[float, float] | None = None,
) -> Iterator[CaseRow]:
    """Yield the rows of these cases, one case at a time, so that memory stays that of one image.

    With a `baseline` (time -> cumulative hazard) a survival model also gives the chance of living beyond each
    time. With a `condition` of `robustness`, each case is changed so first; `seed` decides its noise.
    """
    module.eval()
    device = next(module.parameters()).device
    by_token = {case.token: case for case in cases}
    found_in = (
        batches(hospital.data, cases)
        if condition is None
        else changed(task, hospital.data, cases, condition, seed)
    )
    for batch in found_in:
        moved = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
        with torch.inference_mode():
            outputs = module.predict_step(moved, 0)
        for place, token in enumerate(batch["case"]):
            case = by_token[token]
            named = {
                "model": model,
                "site": hospital.name,
                "split": split,
                "case": token,
                "patient": hospital.patient(case),
                "attributes": {**attributes(case.attributes), **references.spacing(case)},
                "condition": condition,
            }
            if task.metrics:
                yield from _custom_predictions(task, _of_case(outputs, place), _of_case(batch, place), named)
            elif task.needs == "segment":
                restored = hospital.data.restored(
                    outputs["probabilities"][place].cpu().numpy(), case, nearest=False
                )
                yield from _segmented(task, restored, references.of(case), tolerance_mm, named)
            elif task.needs == "survival":
                time, event = (float(value) for value in batch["target"][place])
                risk = float(outputs["risk"][place])
                yield CaseRow(metric="risk", value=risk, target=time, event=bool(event), **named)
                for at, hazard in (baseline or {}).items():
                    value = survival_probability(hazard, risk)
                    yield CaseRow(
                        metric=f"survival@{at:g}", value=value, target=time, event=bool(event), **named
                    )
            else:
                yield from _classified(
                    task, outputs["probabilities"][place], int(batch["target"][place]), named
                )


def batches(data: SiteDataModule, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Yield these cases whole, one a batch, as the network validates on them."""
    from medfed.data.datamodule import collate

    for split in SPLITS:
        wanted = {case.token for case in cases if case.split == split}
        if wanted:
            dataset: Any = data.dataset(split)
            for number, case in enumerate(dataset.cases):
                if case.token in wanted:
                    yield collate([dataset[number]])


def conditions(task: Task) -> tuple[str, ...]:
    """Return the changes under which a task's model is measured."""
    images = task.needs in ("segment", "classify")
    return tuple(robustness.IMAGE_CHANGES if images else robustness.TABLE_CHANGES)


def changed(
    task: Task, data: SiteDataModule, cases: Sequence[Case], condition: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield these cases as `batches` does, each changed before it is prepared."""
    if task.needs in ("segment", "classify"):
        for batch in batches(data, cases):
            case = data.case(batch["case"][0])
            yield {**batch, "image": _changed_image(task, data, case, condition, seed)}
        return
    every = list(batches(data, cases))
    if every:
        features = torch.cat([batch["features"] for batch in every]).numpy()
        generator = np.random.default_rng(_seed(seed, condition, "table"))
        moved = torch.from_numpy(robustness.TABLE_CHANGES[condition](features, generator))
        for batch, one in zip(every, moved, strict=True):
            yield {**batch, "features": one[None]}


def _changed_image(task: Task, data: SiteDataModule, case: Case, condition: str, seed: int) -> torch.Tensor:
    from medfed.data.transforms import centre_crop, prepare
    from medfed.data.volume import Volume

    image, _ = data.original(case)
    settings: Any = data.settings
    generator = np.random.default_rng(_seed(seed, condition, case.token))
    array = robustness.IMAGE_CHANGES[condition](image.array, image.spacing_mm, generator)
    found = prepare(Volume(array, image.affine_ras, image.info), None, settings).image
    if task.needs == "classify" and settings.patch is not None:
        found = centre_crop(found, settings.patch, float(found.min()))
    return torch.from_numpy(np.ascontiguousarray(found, np.float32))[None]


def _seed(seed: int, *names: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join((str(seed), *names)).encode()).digest()[:8], "big")


def _segmented(
    task: Any,
    probabilities: np.ndarray,
    reference: tuple[np.ndarray, tuple[float, ...]],
    tolerance_mm: float,
    named: dict[str, Any],
) -> Iterator[CaseRow]:
    label, spacing_mm = reference
    # A class that this hospital did not label has no reference here.
    structures = {number: task.classes[number] for number in task.labelled_at(named["site"])}
    predicted = task.labels(torch.as_tensor(probabilities)[None])[0, 0].numpy()
    if len(structures) < len(task.classes) - 1:
        predicted, label = (np.where(np.isin(a, list(structures)), a, 0) for a in (predicted, label))
    for found in measure_masks(predicted, label, spacing_mm, structures, tolerance_mm):
        yield CaseRow(
            metric=found.metric, value=found.value, structure=found.structure, note=found.note, **named
        )


def _of_case(batch: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return one case of a batch or of its outputs, without the batch axis, on the CPU."""
    return {
        key: value[place].cpu() if isinstance(value, torch.Tensor) else value[place]
        for key, value in batch.items()
    }


def _custom_predictions(
    task: Task, outputs: Mapping[str, Any], batch: Mapping[str, Any], named: dict[str, Any]
) -> Iterator[CaseRow]:
    """Yield the rows of a task that names the families of metrics that measure it."""
    prediction = CasePrediction(outputs, batch)
    for name in task.metrics:
        family = kinds("metrics").get(name)
        if family is None or not issubclass(family, PredictionMetrics):
            raise StudyError(
                f"task '{kind_of(task)}': metrics: '{name}' is not a family of prediction metrics; register "
                f"a subclass of medfed.evaluation.metrics.PredictionMetrics under this name"
            )
        for metric, (value, note) in family().measure(prediction).items():
            yield CaseRow(metric=metric, value=value, note=note, **named)


def _classified(
    task: Any, probabilities: torch.Tensor, target: int, named: dict[str, Any]
) -> Iterator[CaseRow]:
    for number, name in enumerate(task.classes):
        yield CaseRow(
            metric="probability",
            value=float(probabilities[number]),
            structure=name,
            target=float(number == target),
            **named,
        )


def attributes(found: Mapping[str, str]) -> dict[str, str]:
    """Return what subgroups are made of: sex, scanner and a band of ages, where the
    hospital's table has them.
    """
    kept = {name: found[name] for name in SUBGROUPS if found.get(name)}
    try:
        age = float(found.get("age", ""))
    except ValueError:
        return kept
    low = int(age // AGE_BAND_YEARS * AGE_BAND_YEARS)
    return {**kept, "age_band": f"{low}-{low + AGE_BAND_YEARS - 1}"}


def case_images(
    task: Any, module_at: Callable[[str], LightningModule], hospitals: Mapping[str, Hospital]
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
        predicted = task.labels(torch.as_tensor(restored)[None])[0, 0].numpy()
        return CaseImages(image.array[0], predicted, reference, image.affine_ras)

    return load
