"""Predictions are made at the threshold that a hospital may rely on, and say so."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from medfed.cli.commands import main
from medfed.errors import RunError, StudyError
from medfed.evaluation import rows
from medfed.evaluation.rows import CaseRow, Row
from medfed.pipeline import predict
from medfed.pipeline.guaranteed_threshold import Decision, write_said
from medfed.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from test_predict import CONFIGS, SAMPLES, hospital_of, untrained_run

ASKED = ("evaluation.guarantee=0.9", "evaluation.smallest_group=5")


def validated(metric: str, values, site: str = "north", structure: str = "lesion") -> list[CaseRow]:
    return [
        CaseRow(model="federated", site=site, split="val", case=f"c{n}", patient=f"p{n}", metric=metric,
                value=value, structure=structure)
        for n, value in enumerate(values)
    ]  # fmt: skip


def threshold_row(site: str, value: float | None, **more: object) -> Row:
    about = {"round": 1, "split": "val", "model": "federated", "metric": "guarantee_found", "n": 40}
    return Row(**{**about, "structure": "lesion", "site": site, "value": value, **more})


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path]:
    """A run whose north has 40 validation patients, the least with 0.317; its rows say less."""
    folder = tmp_path_factory.mktemp("guaranteed")
    done = untrained_run(folder / "run", CONFIGS / "quickstart.yaml", ASKED)
    rows.write(done.scores, validated("found", np.linspace(0.317, 0.9, 40)))
    few = threshold_row("east", None, note="no guarantee: 12 validation patients", n=12)
    rows.write(done.rows, [threshold_row("north", 0.3), threshold_row("south", 0.2), few])
    return done, hospital_of(SAMPLES / "north", folder / "north", 1)


def volume(out: Path) -> np.ndarray:
    (path,) = out.glob("*.nii.gz")
    return np.asarray(nibabel.load(path).dataobj)


def test_a_mask_is_of_the_voxels_that_reach_the_hospitals_own_threshold(masks, tmp_path, monkeypatch):
    done, data = masks
    seen = []
    original = predict.Decision.mask
    monkeypatch.setattr(predict.Decision, "mask", lambda self, p: seen.append(p) or original(self, p))
    out = predict.predict(done, data, tmp_path / "out", name="north", guarantee="found")
    assert (volume(out) == (seen[0][1] >= 0.31)).all()
    assert 0 < volume(out).mean() < 1
    said = (out / "guarantee.txt").read_text()
    assert said.startswith(
        "In at least 90 % of patients with lesion it is found, with 95 % confidence, at north at a "
        "threshold of 0.31 (its own, of 40 validation patients; it stays at this hospital).\n"
    )
    (line,) = csv.DictReader((out / "predictions.csv").open())
    assert line["threshold"] == "0.31"


def test_what_is_said_beside_predictions_names_what_weakens_it(tmp_path):
    decision = Decision("sensitivity", 1, "ill", 0.3, "It holds", "Chosen by the same patients.")
    write_said(decision, "None is known.", tmp_path)
    last = (tmp_path / "guarantee.txt").read_text().splitlines()[-2:]
    assert last == [
        "Of several images of a patient the mean probability counts.",
        "Chosen by the same patients.",
    ]
    write_said(Decision("found", 1, "lesion", 0.3, "It holds"), "None is known.", tmp_path)
    assert (tmp_path / "guarantee.txt").read_text().endswith("nothing is guaranteed.\nNone is known.\n")


def test_without_its_patients_the_rows_threshold_is_taken_and_the_terminal_says_so(masks, tmp_path):
    done, data = masks
    command = ["predict", str(done.path), "--data", str(data), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--name", "south", "--guarantee", "found:lesion"])
    assert result.exit_code == 0, result.output
    assert "at south at a threshold of 0.20 (from the run's rows)" in result.output
    assert "nothing is guaranteed" in result.output


@pytest.mark.parametrize(
    ("name", "wanted", "error", "words"),
    [
        (
            "east",
            "found",
            RunError,
            "'east' in this run: no guarantee: 12 validation patients; .*: north, south",
        ),
        (
            "evaluated",
            "found",
            RunError,
            "no guaranteed threshold of 'evaluated'.* with --name: north, south",
        ),
        ("north", "covered", RunError, "north: no guarantee: 0 validation patients, 29 are needed"),
        ("north", "set", StudyError, "no guarantee 'set'; there are found, covered, voxels"),
        ("north", "found:liver", StudyError, "write found: and one of lesion behind it"),
    ],
)
def test_where_there_is_none_it_is_refused_before_anything_is_predicted(
    masks, tmp_path, name, wanted, error, words
):
    done, data = masks
    with pytest.raises(error, match=words):
        predict.predict(done, data, tmp_path / "out", name=name, guarantee=wanted)


def test_another_model_and_a_study_without_guarantees_are_refused(masks, tmp_path):
    done, data = masks
    with pytest.raises(RunError, match="guarantees are of the federated model, not of 'untrained'"):
        predict.predict(done, data, tmp_path / "out", model="untrained", guarantee="found", name="north")
    plain = untrained_run(tmp_path / "run", CONFIGS / "tabular.yaml")
    with pytest.raises(StudyError, match=r"evaluation\.guarantee is not set"):
        predict.predict(plain, SAMPLES / "tabular" / "university.csv", tmp_path / "two", guarantee="set")


def test_classes_are_called_at_the_threshold_and_sets_hold_those_above_it(tmp_path):
    done = untrained_run(tmp_path / "run", CONFIGS / "tabular.yaml", ASKED)
    shown = {"structure": None, "n": 40}
    rows.write(done.rows, [
        threshold_row("north", 0.4, metric="guarantee_sensitivity", **shown),
        threshold_row("north", 0.2, metric="guarantee_set", **shown),
    ])  # fmt: skip
    data = tmp_path / "new.csv"
    data.write_bytes((SAMPLES / "tabular" / "university.csv").read_bytes())
    called = predict.predict(done, data, tmp_path / "called", name="north", guarantee="sensitivity")
    lines = list(csv.DictReader((called / "predictions.csv").open()))
    assert {line["called disease"] for line in lines} == {"yes", "no"}
    for line in lines:
        assert (line["called disease"] == "yes") == (float(line["probability of disease"]) >= 0.4)
    sets = predict.predict(done, data, tmp_path / "sets", name="north", guarantee="set")
    for line in csv.DictReader((sets / "predictions.csv").open()):
        above = [name for name in ("healthy", "disease") if float(line[f"probability of {name}"]) >= 0.2]
        assert line["set of classes"] == "; ".join(above)


def test_of_a_case_that_was_not_predicted_nothing_is_called():
    decision = predict.Decision("sensitivity", 1, "disease", 0.4, "")
    line: dict[str, object] = {"case": "c1", "note": "not predicted: too small"}
    assert decision.columns(line) == line
    mask = decision._replace(kind="found").columns({"case": "c1", "file": "c1.nii.gz"})
    assert mask == {"case": "c1", "file": "c1.nii.gz", "threshold": 0.4}
