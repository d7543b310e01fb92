"""Several models as one: the mean of probabilities and of log risks, and weights that hold every member."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from medfed.errors import RunError
from medfed.models.ensemble import Ensemble, join_members, members_of


class Says(pl.LightningModule):
    """Predicts what it was given."""

    def __init__(self, **outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return {"case": list(batch["case"]), **self.outputs}


BATCH = {"case": ["a", "b"]}


def test_probabilities_are_averaged_as_probabilities_not_as_logits() -> None:
    """(0.99 + 0.40 + 0.41) / 3 = 0.6; the mean of their logits would be sigmoid(1.28) = 0.78."""
    members = [Says(probabilities=torch.tensor([[1 - p, p], [p, 1 - p]])) for p in (0.99, 0.40, 0.41)]
    said = Ensemble(members).predict_step(BATCH, 0)
    assert said["case"] == ["a", "b"]
    assert said["probabilities"].tolist() == [pytest.approx([0.4, 0.6]), pytest.approx([0.6, 0.4])]
    assert set(said) == {"case", "probabilities"}


def test_log_risks_are_averaged_as_they_are() -> None:
    members = [Says(risk=torch.tensor([1.0, -2.0])), Says(risk=torch.tensor([3.0, 1.0]))]
    said = Ensemble(members).predict_step(BATCH, 0)
    assert said["risk"].tolist() == [2.0, -0.5]
    assert set(said) == {"case", "risk"}


def test_a_segmentations_labels_are_of_the_mean_and_no_vote() -> None:
    """Two of three members see class 1 at the voxel (0.6, 0.6, 0), but its mean of 0.4 is below that of 0."""
    members = []
    for p in (0.6, 0.6, 0.0):
        probabilities = torch.tensor([1 - p, p]).reshape(1, 2, 1, 1, 1)
        members.append(Says(probabilities=probabilities, label=probabilities.argmax(dim=1, keepdim=True)))

    def labels(mean: Tensor) -> Tensor:
        return mean.argmax(dim=1, keepdim=True)

    said = Ensemble(members, labels).predict_step({"case": ["a"]}, 0)
    assert said["label"].tolist() == [[[[[0]]]]]
    assert said["probabilities"].flatten().tolist() == pytest.approx([0.6, 0.4])


def test_a_member_that_says_nan_makes_the_mean_nan() -> None:
    members = [Says(risk=torch.tensor([1.0])), Says(risk=torch.tensor([float("nan")]))]
    assert Ensemble(members).predict_step({"case": ["a"]}, 0)["risk"].isnan().all()


@pytest.mark.parametrize("classes", [1, 3])
def test_members_with_other_classes_have_no_mean(classes: int) -> None:
    """One column would be broadcast over two in a plain sum."""
    members = [Says(probabilities=torch.ones(2, 2)), Says(probabilities=torch.ones(2, classes))]
    with pytest.raises(RuntimeError, match="equal size"):
        Ensemble(members).predict_step(BATCH, 0)


def test_weights_hold_each_member_and_give_it_back_in_order_beyond_ten() -> None:
    """As texts, 'members.10.' sorts before 'members.2.'."""
    members = [{"network.weight": torch.full((2,), float(n)), "members.0": torch.ones(1)} for n in range(12)]
    joined = join_members(members)
    assert joined["members.10.network.weight"].tolist() == [10.0, 10.0]
    back = members_of(dict(sorted(joined.items())))
    assert [one["network.weight"][0].item() for one in back] == list(range(12))
    assert all(set(one) == {"network.weight", "members.0"} for one in back)


def test_a_single_models_weights_are_no_ensemble() -> None:
    assert members_of({}) == []
    assert members_of({"members.0.weight": torch.ones(1), "network.weight": torch.ones(1)}) == []


def test_an_ensemble_that_lost_a_member_is_no_mean_of_the_others() -> None:
    joined = join_members([{"w": torch.ones(1)}] * 3)
    del joined["members.1.w"]
    with pytest.raises(RunError, match=r"member 1 of 3 has no weights .* is another model"):
        members_of(joined)
