"""Cases are measured for the structures that their hospital labels, and labels are cached up to a bound."""

from __future__ import annotations

import numpy as np

from medfed.evaluation import inference
from medfed.evaluation.inference import MeasurementSettings, Reference, _segmented, measure_scores
from medfed.models.tasks.segment import Segment
from medfed.pipeline.factory import hospital_of, module_of
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


def test_scores_are_of_probabilities_inside_the_reference_and_none_where_it_is_empty(tiny, monkeypatch):
    """A model that gives p = 0.01 * rank inside the lesion: the largest, and what nine tenths of it reach."""
    study = read_study(tiny / "tiny.yaml")
    hospital = hospital_of(study, "north", study.sites["north"])
    labels, cases = inference.LabelCache(hospital), hospital.data.cases("train")[:2]
    inside = labels.reference(cases[0]).label == 1
    given = np.linspace(0.2, 0.9, int(inside.sum()), dtype=np.float32)
    probabilities = np.zeros((2, *inside.shape), np.float32)
    probabilities[1] = 1.0  # outside of the lesion nothing counts
    probabilities[1][inside] = np.random.default_rng(0).permutation(given)
    monkeypatch.setattr(type(hospital.data), "restored", lambda *args, **more: probabilities)
    empty = labels.reference(cases[1])._replace(label=np.zeros_like(inside, np.uint8))
    monkeypatch.setitem(labels._labels, cases[1].token, empty)
    settings = MeasurementSettings("federated", "val")
    rows = list(measure_scores(study.task, module_of(study), cases, labels, settings))
    assert {row.case for row in rows} == {cases[0].token}
    result, covered, *missed = rows
    shares = {float(row.metric.removeprefix("missed@")): row.value for row in missed}
    assert shares[0.01] == 0.0
    assert min(at for at in shares if at > 0.01) == 0.21  # the least is .2
    assert all(share == (given.astype(np.float64) < at).mean() for at, share in shares.items())
    assert (result.metric, result.value, result.structure) == (
        "found",
        float(given[-1]),
        study.task.classes[1],
    )
    assert covered.metric == "covered"
    assert (given >= covered.value).mean() >= 0.9 > (given > covered.value).mean() - 1 / len(given)
    assert (result.split, result.site) == ("val", "north")
