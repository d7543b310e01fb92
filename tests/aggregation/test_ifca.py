"""IFCA's hub: where its models start, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from medfed.aggregation.ifca import IFCA as IFCARule
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import digest

torch.set_num_threads(1)


def test_ifcas_models_start_apart_by_the_seed_and_one_nobody_chose_stays() -> None:
    weights = {
        "w": torch.randn(50, generator=torch.Generator().manual_seed(0)),
        "n.running_var": torch.ones(3),
    }
    first, again, other = (
        IFCARule(clusters=3).init(weights),
        IFCARule(clusters=3).init(weights),
        IFCARule(seed=1).init(weights),
    )
    assert {name: digest(group) for name, group in first.items()} == {
        name: digest(group) for name, group in again.items()
    }
    assert digest(first["cluster-00"]) == digest(weights)
    assert digest(first["cluster-01"]) != digest(first["cluster-02"])
    assert digest(first["cluster-01"]) != digest(other["cluster-01"])
    deviation = float((first["cluster-01"]["w"] - weights["w"]).std() / weights["w"].std(correction=0))
    assert deviation == pytest.approx(0.5, rel=0.3)
    assert torch.equal(first["cluster-01"]["n.running_var"], torch.ones(3))
    moved = {name: tensor + 1 for name, tensor in weights.items()}
    update = Update(
        "a", 1, {name: moved[name] - weights[name] for name in weights}, 3, {"train/cluster": 2.0}
    )
    _, state = IFCARule(clusters=3).merge([update], first, weights)
    assert digest(state["cluster-01"]) == digest(first["cluster-01"])
    torch.testing.assert_close(state["cluster-02"], moved)


def test_a_cluster_that_does_not_exist_is_refused() -> None:
    weights = {"w": torch.zeros(1)}
    update = Update("a", 1, {"w": torch.ones(1)}, 3, {"train/cluster": 2.0})
    with pytest.raises(
        RuleError,
        match="site 'a' for round 1: scalar 'train/cluster' is 2; expected a whole number from 0 to 1",
    ):
        IFCARule().merge([update], IFCARule().init(weights), weights)
