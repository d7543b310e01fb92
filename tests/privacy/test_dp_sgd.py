"""DP-SGD's settings: what a site sends, and which studies it objects to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fednova import FedNova
from medfed.aggregation.qfedavg import QFedAvg
from medfed.errors import PrivacyError
from medfed.local_training.ditto import Ditto
from medfed.local_training.fedprox import FedProx
from medfed.privacy.dp_sgd import DPSGD, EPSILON
from medfed.wire.update import Update

WEIGHTS = {"w": torch.zeros(2)}


def test_an_update_of_private_training_leaves_unchanged_and_no_other():
    update = Update("north", 2, WEIGHTS, 5, {EPSILON: 1.5})
    assert DPSGD().protect(update, WEIGHTS) is update
    with pytest.raises(PrivacyError, match="site 'north', round 2: the study asks for dp_sgd and"):
        DPSGD().protect(Update("north", 2, WEIGHTS, 5, {"train/steps": 3.0}), WEIGHTS)


@pytest.mark.parametrize("scores, kept", [("withhold", {EPSILON}), ("send", {EPSILON, "val/dice"})])
def test_scores_leave_where_the_study_says_so(scores, kept):
    scalars = {EPSILON: 1.5, "val/dice": 0.8, "train/loss": 0.1}
    assert set(DPSGD(scores=scores).filter_scalars(scalars)) == kept


def study(*, needs="segment", rule=None, data=None, **train):
    plain = {"precision": 32, "accumulate": 1, "local": None, "steps": None}
    return SimpleNamespace(
        task=SimpleNamespace(needs=needs),
        train=SimpleNamespace(**{**plain, **train}),
        data=SimpleNamespace(**(data or {})),
        rule=rule or FedAvg(),
    )


@pytest.mark.parametrize(
    "fits",
    [
        study(),
        study(precision="bf16-mixed", local=FedProx(), rule=FedNova()),
        study(data={"plan": "given", "standardise": "fixed", "missing": "drop"}),
        study(data={"standardise": "none"}),
        study(data={"missing": "median"}),  # images: nothing is filled from other patients
    ],
)
def test_a_study_that_it_covers_has_no_objection(fits):
    assert list(DPSGD().objections(fits)) == []


@pytest.mark.parametrize(
    "against, beginning",
    [
        (study(needs="survival"), "privacy.kind: 'dp_sgd' needs a loss of each patient alone"),
        (study(precision="16-mixed"), "train.precision: 16-mixed scales the loss"),
        (study(accumulate=2), "train.accumulate: 2 with dp_sgd"),
        (study(local=Ditto()), "train.local.kind: 'ditto' may use patients besides the noised gradients"),
        (study(steps=5), "train.steps: dp_sgd draws patients by chance"),
        (study(data={"plan": "shared"}), "data.plan sends sums over each hospital's patients"),
        (study(data={"standardise": "site"}), "data.standardise: site scales each patient by the mean"),
        (study(data={"standardise": "combat"}), "data.standardise: combat scales each patient"),
        (
            study(data={"standardise": "none", "missing": "median"}),
            "data.missing: median fills gaps from other patients' rows",
        ),
        (study(rule=QFedAvg()), "rule.kind: 'qfedavg' needs each site's 'train/loss_before'"),
    ],
)
def test_a_study_that_it_cannot_cover_is_objected_to_by_its_key(against, beginning):
    (objection,) = DPSGD().objections(against)
    assert objection.startswith(beginning)


IMAGES = {"augment": "none", "patch": None, "transforms": (), "spatial_dims": 3}
TABLE = {"standardise": "fixed", "missing": "drop"}


@pytest.mark.parametrize(
    "varies",
    [
        study(data={**IMAGES, "patch": (16, 16, 16)}),
        study(data={**IMAGES, "spatial_dims": 2}),  # a slice is drawn
        study(needs="classify", data={**IMAGES, "augment": object()}),
        study(needs="classify", data={**IMAGES, "transforms": (object(),)}),
        study(needs="table"),  # a data module of the study's own may draw
    ],
)
def test_copies_that_can_differ_are_allowed(varies):
    assert list(DPSGD(augmentations=4).objections(varies)) == []


@pytest.mark.parametrize(
    "fixed",
    [
        study(data=IMAGES),
        study(needs="classify", data={**IMAGES, "patch": (16, 16, 16)}),
        study(needs="classify", data={**IMAGES, "spatial_dims": 2}),
        study(needs="table", data=TABLE),
    ],
)
def test_copies_that_would_be_equal_are_objected_to(fixed):
    assert list(DPSGD().objections(fixed)) == []
    (objection,) = DPSGD(augmentations=4).objections(fixed)
    assert objection.startswith("privacy.augmentations: 4 copies of a patient would be equal")


def test_the_notes_name_epsilon_delta_and_what_is_not_covered():
    first, second = DPSGD(epsilon=3, delta=1e-6).notes()
    assert "epsilon 3 at delta 1e-06" in first
    assert "stay in the hospitals" in second
