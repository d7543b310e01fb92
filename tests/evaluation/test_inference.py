"""Cases are measured for the structures that their hospital labels, and labels are cached up to a bound."""

from __future__ import annotations

import numpy as np

from medfed.evaluation import inference
from medfed.evaluation.inference import Reference, _segmented
from medfed.models.tasks.segment import Segment
from medfed.pipeline.factory import hospital_of
from medfed.study.reading import read_study


def test_labels_beyond_the_bound_are_read_again_and_not_kept(tiny, monkeypatch):
    study = read_study(tiny / "tiny.yaml")
    hospital = hospital_of(study, "north", study.sites["north"])
    monkeypatch.setattr(inference, "MAX_CACHED_BYTES", 2 * 16**3)
    labels = inference.LabelCache(hospital)
    cases = [case for split in ("train", "val", "test") for case in hospital.data.cases(split)]
    first = [labels.reference(case)[0] for case in cases]
    assert len(labels._labels) == 2
    assert all(
        np.array_equal(labels.reference(case)[0], label) for case, label in zip(cases, first, strict=True)
    )
    assert labels._bytes <= 2 * 16**3


def test_a_case_is_measured_for_what_its_hospital_labels() -> None:
    task = Segment(classes=("background", "liver", "spleen"), labelled={"north": ("spleen",)})
    label = np.zeros((4, 4, 4), np.uint8)
    label[1:3, 1:3, 1:3] = 2
    probabilities = np.zeros((3, 4, 4, 4), np.float32)
    probabilities[1] = 1
    named = {"model": "m", "split": "test", "case": "c", "patient": "p", "attributes": {}}
    for site, structures in (("north", {"spleen"}), ("south", {"liver", "spleen"})):
        rows = list(
            _segmented(task, probabilities, Reference(label, (1.0, 1.0, 1.0)), 2.0, {**named, "site": site})
        )
        assert {row.structure for row in rows} == structures
