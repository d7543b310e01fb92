"""The pooled model: one full step on everybody's cases is the federation's step, so the two
must agree to rounding.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from medfed.errors import DataError
from medfed.evaluation.rows import POOLED, read_cases
from medfed.pipeline import train as run
from medfed.pipeline.experiments.pooled import PooledData, PooledDataset
from medfed.pipeline.factory import hospital_of, module_of
from medfed.study.reading import read_study
from medfed.wire.weights import weights_of

TABULAR = Path(__file__).parents[3] / "configs" / "tabular.yaml"
# One step a round on all of a hospital's rows, by plain gradient descent.
ONE_STEP = [
    "train.rounds=4",
    "train.epochs=1",
    "train.batch=100000",
    "train.optimiser={kind: sgd, lr: 0.1}",
    "evaluation.local_models=false",
    "evaluation.draws=50",
]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run.train(TABULAR, out=tmp_path_factory.mktemp("pooled") / "run", overrides=ONE_STEP)


def test_one_full_step_a_round_pooled_is_federated_averaging(done):
    """The mean of the sites' gradients, weighted by their cases, is the gradient over all cases
    (McMahan 2017, eq. 1).
    """
    pooled, federated = (weights(done.checkpoint(model)) for model in (POOLED, "federated"))
    started = weights_of(module_of(read_study(TABULAR, ONE_STEP)))
    for name, result in pooled.items():
        assert torch.allclose(result, federated[name], atol=1e-6), name
        assert not torch.allclose(result, started[name], atol=1e-3), name


def test_it_is_measured_everywhere_and_compared(done):
    cases = read_cases(done.cases)
    assert {row.site for row in cases if row.model == POOLED} == {
        "north", "east", "south", "west", "university",
    }  # fmt: skip
    assert "Pooled" in done.report.read_text()


def test_hospitals_are_shuffled_together_and_none_is_left_out(tiny):
    study = read_study(tiny / "tiny.yaml")
    data = {name: hospital_of(study, name, where).data for name, where in study.sites.items()}
    loader = PooledData(data, batch=1).train_dataloader()
    torch.manual_seed(0)
    seen = [batch["case"][0] for batch in loader]
    wanted = [case.token for one in data.values() for case in one.cases("train")]
    assert set(seen) == set(wanted)
    north = {case.token for case in data["north"].cases("train")}
    changes = sum((a in north) != (b in north) for a, b in pairwise(seen))
    assert changes > 1


def test_each_hospitals_patches_have_a_stream_of_their_own(tiny):
    study = read_study(tiny / "tiny.yaml")
    data = hospital_of(study, "north", study.sites["north"]).data
    both = PooledDataset([data.dataset("train", training=True), data.dataset("train", training=True)])
    both.set_random_state(3)
    assert both.datasets[0].seed != both.datasets[1].seed
    first = both[0]["image"].clone()
    both.set_random_state(4)
    both.set_random_state(3)
    assert torch.equal(both[0]["image"], first)


def test_without_a_training_case_there_is_nothing_to_pool():
    with pytest.raises(DataError, match="no hospital has a training case"):
        PooledData({}, batch=1).train_dataloader()
