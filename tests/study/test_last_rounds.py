"""Which studies can train on validation patients in their last rounds, and what they are then."""

from __future__ import annotations

import pytest

from medfed.errors import StudyError
from medfed.pipeline.factory import hub_config_of, site_config_of
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.last_rounds import last_rounds_sentence
from medfed.study.reading import read_study
from medfed.study.study import first_on_all

KEY = "train.last_rounds_on_all=2"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.keep=best"], "train.keep: best needs patients who did not"),
        (["train.patience=3"], "train.patience needs patients who did not"),
        (["evaluation.temperature=true"], "evaluation.temperature needs patients"),
        (["evaluation.guarantee=0.9"], "evaluation.guarantee needs patients"),
        (["task.postprocess=auto"], "task.postprocess: auto needs patients"),
        (
            ["search={rounds: 9, space: {train.batch: [1, 2]}}"],
            "search needs patients who did not",
        ),
        (["privacy={kind: dp_sgd, epsilon: 3, delta: 1e-5}"], "privacy 'dp_sgd' charges its ledger"),
        (["privacy={kind: client_dp, where: site, noise_multiplier: 2}"], "privacy 'client_dp' charges"),
        (["rule={kind: fedbuff}"], "with rule 'fedbuff' sites are in different rounds"),
        (
            ["exchange={kind: flower, rounds: 3, handoff: here}"],
            "of exchange 'flower' counts its own",
        ),
        (["train.last_rounds_on_all=4"], "is 4, and the study has 3 rounds"),
    ],
    ids=str,
)
def test_what_needs_unseen_validation_patients_is_refused(tiny, overrides, said):
    with pytest.raises(StudyError, match=f"train.last_rounds_on_all: .*{said}"):
        read_study(tiny / "tiny.yaml", [KEY, *overrides])


def test_hub_and_site_are_told_the_first_such_round(tiny):
    study = read_study(tiny / "tiny.yaml", [KEY])  # of 3 rounds: 2 and 3
    assert study.on_all_from == 2
    assert site_config_of(study, "north").on_all_from == hub_config_of(study).on_all_from == 2
    assert read_study(tiny / "tiny.yaml", ["train.last_rounds_on_all=3"]).on_all_from == 1
    plain = read_study(tiny / "tiny.yaml")
    assert site_config_of(plain).on_all_from is hub_config_of(plain).on_all_from is plain.on_all_from is None


def test_only_a_study_with_such_rounds_has_another_digest(tiny):
    plain, said = (
        read_study(tiny / "tiny.yaml"),
        read_study(tiny / "tiny.yaml", ["train.last_rounds_on_all=0"]),
    )
    asked = read_study(tiny / "tiny.yaml", [KEY])
    assert study_digest(said) == study_digest(plain) != study_digest(asked)
    assert "last_rounds_on_all" not in public_yaml(plain)
    assert "last_rounds_on_all: 2" in public_yaml(asked)


def test_the_sentence_of_the_log(tiny):
    assert last_rounds_sentence(read_study(tiny / "tiny.yaml", [KEY])) == (
        "from round 2 on, each hospital trains on its validation patients, too; the model of round 1 is the "
        "last one with validation scores"
    )
    assert last_rounds_sentence(read_study(tiny / "tiny.yaml")) == ""


def test_the_last_of_ten_rounds():
    assert [first_on_all(10, last) for last in (0, 1, 3, 10)] == [None, 10, 8, 1]
