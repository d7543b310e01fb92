"""If layers stay in the hospitals, a model is measured, perturbed and shown only where it is complete."""

from __future__ import annotations

import pytest

from medfed.errors import RunError
from medfed.evaluation.rows import read_cases
from medfed.pipeline import predict
from medfed.pipeline import train as run


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    overrides = [
        "train.rounds=1",
        "network.norm=batch",
        "train.keep_local=[norm]",
        "evaluation.local_models=false",
        "evaluation.pooled_model=false",
    ]
    return run.train(tiny / "tiny.yaml", out=tmp_path_factory.mktemp("kept") / "run", overrides=overrides)


def test_changed_images_are_measured_with_the_hospitals_own_layers(done):
    result = [row for row in read_cases(done.cases) if row.model == "federated"]
    assert {row.site for row in result} == {"north", "south"}
    assert {row.condition for row in result} > {None, "noise of 10 %"}
    # A shift is undone by normalisation, so any difference would be other layers than the
    # unchanged images had.
    plain = {(r.site, r.case, r.metric): r.value for r in result if r.condition is None}
    shifted = {
        (r.site, r.case, r.metric): r.value for r in result if (r.condition or "").startswith("intensity")
    }
    assert set(shifted) == set(plain)
    for key, value in plain.items():
        if key[2] == "dice" and value is not None:
            assert shifted[key] == pytest.approx(value, abs=0.02)


def test_pictures_are_of_the_hospitals_that_have_a_whole_model(done):
    page = (done.path / "cases.html").read_text()
    assert "of west" not in page
    assert "of north" in page or "of south" in page


def test_half_a_model_predicts_nothing(done, tiny, tmp_path):
    with pytest.raises(RunError, match="is complete only with the layers that each hospital kept"):
        predict.predict(done, tiny / "west", tmp_path / "out")
