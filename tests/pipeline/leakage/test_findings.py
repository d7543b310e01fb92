"""The worst finding decides the gate; the text says what was tried and how far to rely on it."""

from __future__ import annotations

import json

import pytest
import torch

from medfed.pipeline.leakage.findings import Findings, Inversion, Membership, describe, to_json


def findings(members=(), needs="segment", **more):
    inverted = (Inversion("none", 1, 0.9, 0.8, 0.1), Inversion("client_dp", 2, 0.3, 0.2, 0.1))
    return Findings("heart", "north", needs, inverted, tuple(members), **more)


@pytest.mark.parametrize(
    ("members", "worst"),
    [
        # The last mechanism is the study's own; what leaked without it does not count.
        ([], 0.3),
        ([Membership("none", 16, 40, 0.95, None)], 0.3),
        # An area of 0.7 is an advantage of 0.4, one of 0.75 an advantage of 0.5.
        ([Membership("client_dp", 16, 40, 0.7, None)], 0.4),
        ([Membership("client_dp", 16, 40, 0.7, 0.75)], 0.5),
        # Fewer than twenty cases are too few to decide.
        ([Membership("client_dp", 16, 19, 0.7, 0.75)], 0.3),
        ([Membership("client_dp", 16, 20, 0.7, 0.75)], 0.5),
    ],
)
def test_the_worst_is_of_the_studys_own_privacy(members, worst):
    assert findings(members).worst == pytest.approx(worst)


def test_the_text_names_each_attack_with_its_protection():
    result = Membership("client_dp", 9, 12, 0.7, 0.75, 0.02, 0.11)
    text = describe(findings([result], notes=("Not tried: x.",)))
    assert "models trained without; 2% of the patients found with 0.1 % false alarms, 11% with 1 %" in text
    assert "without protection, 1 case in the step: 90% of the best reconstructed case, 80% on" in text
    assert "with client_dp, 2 cases in the step: 30%" in text
    assert "with client_dp: 70% right by the model's error alone, 75% by comparison" in text
    assert "(9 models; only 12 cases, too few to rely on, and not in the gate)" in text
    assert "Not tried: x." in text
    assert "under this study's protection: 0.30 of 1." in text


def test_rows_of_a_table_have_no_figure_to_look_at():
    assert "Look at the figure too" in describe(findings())
    assert "Look at the figure too" not in describe(findings(needs="table"))
    assert "How much of a patient's row" in describe(findings(needs="survival"))


def test_the_figures_are_json_without_the_pictures():
    plain = json.loads(to_json(findings(pictures={"true": torch.zeros(2)})))
    assert "pictures" not in plain
    assert plain["worst"] == 0.3
    assert plain["inverted"][1] == {
        "privacy": "client_dp",
        "cases": 2,
        "best": 0.3,
        "mean": 0.2,
        "chance": 0.1,
    }
