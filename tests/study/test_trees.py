"""A study of boosted trees is refused where another part would change or show its sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.aggregation._tree_growing import SKETCHES
from medfed.errors import StudyError
from medfed.study.reading import read_study

STUDY = Path(__file__).parents[2] / "configs" / "boosted_trees.yaml"


def test_the_study_of_configs_is_taken() -> None:
    study = read_study(STUDY)
    assert study.train.rounds == SKETCHES + 30 * 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.rounds=20", r"train.rounds: 20, and 30 trees of depth 3 take 94.*set train.rounds to 94"),
        ("train.epochs=2", r"train.epochs: has no meaning .* leave it out"),
        ("train.steps=5", r"train.steps: has no meaning"),
        ("train.clip=1.0", r"train.clip: has no meaning"),
        ("train.average=2", r"train.average: has no meaning"),
        ("train.local={kind: fedprox, mu: 0.1}", r"train.local: has no meaning"),
        ("compress=[{kind: fp16}]", r"compress: has no meaning"),
        ("sampling.fraction=0.5", r"sampling.fraction: 0.5; each level of a tree"),
        ("rule={kind: fedavg}", r"network.kind: 'boosted_trees' with rule 'fedavg': trees grow at the hub"),
        ("network={kind: fully_connected}", r"data.missing: keep .*'fully_connected' takes none"),
        ("rule.min_patients=4", r"rule.min_patients: 4, and results of fewer than 5"),
        (
            "task.loss={kind: cross_entropy, smoothing: 0.1}",
            r"task.loss: 'cross_entropy' with these settings",
        ),
        ("task.loss={kind: focal}", r"task.loss: 'focal'"),
        ("privacy={kind: none}", r"the hub reads each hospital's sums.*network.reveal_sums: true"),
        ("privacy={kind: secure_sum, bits: 32}", r"privacy.bits: 32 round the sums"),
        (
            "privacy={kind: client_dp, noise_multiplier: 1.0, clip: 1.0}",
            r"privacy.kind: 'client_dp' rounds, clips",
        ),
    ],
)
def test_what_does_not_fit_is_refused(override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        read_study(STUDY, [override])


def test_the_hub_may_read_single_sums_where_the_study_says_so() -> None:
    study = read_study(STUDY, ["privacy={kind: none}", "network.reveal_sums=true"])
    assert study.privacy.reveals_each_update


def test_the_rule_without_trees_is_refused() -> None:
    with pytest.raises(StudyError, match=r"'fully_connected' with rule 'boosted_trees'"):
        read_study(STUDY.with_name("tabular.yaml"), ["rule={kind: boosted_trees}"])
