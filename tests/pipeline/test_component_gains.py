"""The gains that a hospital measures, by hand; and a study that chooses, end to end, in one process."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from medfed.errors import StudyError
from medfed.evaluation.report.checklists import model_card
from medfed.evaluation.report.run import read_run
from medfed.evaluation.rows import FEDERATED, read_cases
from medfed.federation.postprocessing import CANDIDATES, COMPONENTS, PATIENTS, choose_rules
from medfed.models.tasks._connected_components import final_labels
from medfed.models.tasks.segment import Segment
from medfed.pipeline.component_gains import component_gains, component_scalars, with_rules
from medfed.pipeline.create_run import open_run
from medfed.pipeline.factory import folders_of, hospital_of
from medfed.pipeline.measure_models import measure_test_cases, module_with
from medfed.pipeline.predict import predict
from medfed.pipeline.train import train
from medfed.runs.checkpoints import load_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import read_rounds

SHORT = ["train.rounds=2", "evaluation.local_models=false", "evaluation.pooled_model=false"]
AUTO = [*SHORT, "evaluation.draws=10", "evaluation.robustness=false", "task.postprocess=auto"]


def row(*voxels: int) -> np.ndarray:
    return np.array(voxels, bool).reshape(-1, 1, 1)


def gain_of(candidate, *arguments) -> float:
    return component_gains(*arguments)[CANDIDATES.index(candidate)]


def test_gains_by_hand():
    # Components of 3 and 1 voxels; the 3 are right, the 1 is not. 0.05 ml a voxel: 0.15 and 0.05 ml.
    predicted, drawn = row(1, 1, 1, 0, 1, 0), row(1, 1, 1, 0, 0, 0)
    gained = 1.0 - 6 / 7
    assert gain_of("largest", predicted, drawn, 0.05) == pytest.approx(gained)
    assert gain_of(0.1, predicted, drawn, 0.05) == pytest.approx(gained)
    assert gain_of(0.03, predicted, drawn, 0.05) == 0
    # All is removed below 0.3 ml: from 6 / 7 to 0.
    assert gain_of(0.3, predicted, drawn, 0.05) == pytest.approx(-6 / 7)
    # A lesion that is rightly not predicted any more has a Dice of 1, and keeping the largest keeps it.
    assert gain_of(0.1, row(0, 0, 1), row(0, 0, 0), 0.05) == 1.0
    assert gain_of("largest", row(0, 0, 1), row(0, 0, 0), 0.05) == 0
    assert list(component_gains(row(0, 0), row(0, 1), 0.05)) == [0] * len(CANDIDATES)


def test_without_a_size_only_the_largest_can_gain():
    gains = component_gains(row(1, 1, 0, 1), row(1, 1, 0, 0), None)
    assert [one > 0 for one in gains] == [one == "largest" for one in CANDIDATES]


def test_a_component_of_just_the_volume_stays():
    task = Segment(classes=("background", "a", "b"), postprocess={"a": 0.1, "b": "largest"})
    numbers = torch.zeros(1, 1, 210, dtype=torch.long)
    numbers[..., :100], numbers[..., 110:209] = 1, 1  # 100 and 99 voxels of 0.001 ml
    numbers[..., 102], numbers[..., 104:106] = 2, 2
    probabilities = torch.nn.functional.one_hot(numbers, 3).movedim(-1, 0).float()
    found = final_labels(task, probabilities, 0.001)
    assert [(found == number).sum() for number in (1, 2)] == [100, 2]
    with pytest.raises(StudyError, match="no voxels with a volume in mm"):
        final_labels(task, probabilities, None)


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("auto") / "run"
    return train(tiny / "tiny.yaml", out=out, overrides=AUTO)


def sent(folder) -> dict[str, dict[str, float]]:
    lines = [one for one in read_rounds(folder.rounds) if PATIENTS in one.scalars]
    return {
        one.site: {name: value for name, value in one.scalars.items() if name.startswith(COMPONENTS)}
        for one in lines
    }


def test_two_hospitals_choose_and_everything_says_so(done):
    values, facts = sent(done), done.read_facts()
    assert sorted(values) == ["north", "south"]
    rules, _ = choose_rules(values, ["lesion"])
    assert facts.postprocess.rules == rules
    assert torch.load(done.checkpoint("federated"), weights_only=True)["postprocess"] == rules
    assert open_run(done)[2].task.postprocess == rules
    assert facts.postprocess.sentence in done.report.read_text()
    assert facts.postprocess.sentence.rstrip(".") in model_card(read_run(done.path), "")["Training"]
    assert '"event":"postprocess"' in done.audit.read_text()


def test_what_is_sent_are_the_gains_of_the_final_model(done):
    study = open_run(done)[2]
    module = module_with(study, load_checkpoint(done.checkpoint("federated")))
    for site, path in folders_of(study).items():
        hospital = hospital_of(study, site, path)
        if site in study.sites:
            assert component_scalars(study, module, hospital, 1) == pytest.approx(sent(done)[site])
            assert component_scalars(study, module, hospital, 2) == {}, "one validation patient is too few"


def test_too_few_validation_patients_send_nothing_and_nothing_is_removed(tiny, tmp_path):
    few = [*AUTO, "evaluation.smallest_group=5"]
    run = train(tiny / "tiny.yaml", out=tmp_path / "few", overrides=few)
    assert sent(run) == {}
    assert run.read_facts().postprocess.rules == {}


def test_masks_and_scores_are_without_what_is_removed(done, tmp_path):
    folder, _, study = open_run(done)
    big = with_rules(study, {"lesion": 1e3})
    (tmp_path / "other").mkdir()
    hospital = hospital_of(big, "north", folders_of(big)["north"])
    weights = {FEDERATED: load_checkpoint(folder.checkpoint(FEDERATED))}
    other = RunFolder(tmp_path / "other")
    measure_test_cases(big, other, hospital, hospital.data.cases("test"), weights)
    dice = [one.value for one in read_cases(other.cases) if one.metric == "dice" and not one.condition]
    assert dice == [0.0], "a litre is more than any component: nothing is left of the prediction"
    out = predict(done, folders_of(study)["north"], tmp_path / "masks")
    assert all(np.asarray(nibabel.load(one).dataobj).max() <= 1 for one in out.glob("*.nii.gz"))


def test_a_resumed_run_has_the_same_choice(done, tiny):
    before = done.read_facts().postprocess
    again = train(tiny / "tiny.yaml", out=done.path, overrides=AUTO, resume=True)
    assert again.read_facts().postprocess == before
    assert open_run(again)[2].task.postprocess == before.rules
