"""SCAFFOLD on quadratics, with every step computed by hand, through callback, exchange and rule."""

from __future__ import annotations

import pytest
from hospitals import write_study
from quadratics import CENTRES, JOINT, RATE, ROUNDS, STEPS, federated

import medfed
from medfed.aggregation.scaffold import Scaffold as ScaffoldRule
from medfed.errors import StudyError
from medfed.local_training.scaffold import Scaffold


def by_hand(option: str) -> float:
    x, c, controls = 0.0, 0.0, dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models, changes = [], []
        for site, (centre, curvature) in CENTRES.items():
            y = x
            for _ in range(STEPS):
                y -= RATE * (curvature * (y - centre) - controls[site] + c)
            gradient_at_x = curvature * (x - centre)
            new = gradient_at_x if option == "I" else controls[site] - c + (x - y) / (STEPS * RATE)
            models.append(y)
            changes.append(new - controls[site])
            controls[site] = new
        x, c = sum(models) / 2, c + sum(changes) / 2
    return x


@pytest.mark.parametrize("option", ["I", "II"])
def test_both_options_by_hand(option):
    final, _ = federated(Scaffold(option=option), ScaffoldRule())
    assert final == pytest.approx(by_hand(option), rel=1e-6)


def test_it_ends_nearer_the_joint_minimum_than_fedavg():
    final, _ = federated(Scaffold(), ScaffoldRule())
    fedavg, _ = federated(None)
    assert abs(final - JOINT) < abs(fedavg - JOINT)


def test_a_study_that_names_only_one_half_is_refused(tmp_path):
    study = write_study(tmp_path)
    with pytest.raises(
        StudyError,
        match=r"rule\.kind: 'scaffold' merges the group 'control'.*train\.local: \{kind: scaffold\}",
    ):
        medfed.read_study(study, ["rule.kind=scaffold"])
    medfed.read_study(study, ["rule.kind=scaffold", "train.local.kind=scaffold"])
