from __future__ import annotations

from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import parse_study, read_study


def test_a_digest_is_of_the_study_and_not_of_where_data_lie(write, study_text):
    one = study_digest(read_study(write()))
    assert one == study_digest(read_study(write(study_text.replace("data/north", "/elsewhere"))))
    assert one != study_digest(read_study(write(), ["train.rounds=4"]))
    assert one != study_digest(read_study(write(study_text.replace("south:", "west:"))))


def test_a_number_may_be_a_hospitals_word(write, study_text):
    """`{1: liver}` and `{"1": liver}` are one study, also as the hub publishes it."""
    number, text = (
        read_study(write(f"{study_text}\nsite_overrides: {{north: {{classes: {{{key}: lesion}}}}}}\n"))
        for key in ("1", "'1'")
    )
    assert study_digest(number) == study_digest(text)
    assert study_digest(parse_study(public_yaml(number), "the hub's")) == study_digest(number)


def test_a_study_that_nobody_may_join_keeps_the_digest_from_before_there_was_that_key(write, study_text):
    study = read_study(write())
    assert "joining" not in public_yaml(study)
    may_join = read_study(write(), ["sampling.joining=true"])
    assert study_digest(may_join) != study_digest(study)
    assert parse_study(public_yaml(may_join), "the hub's").sampling.joining


def test_a_private_study_without_copies_keeps_the_digest_from_before_there_was_that_key(write):
    plain = read_study(write(), ["privacy={kind: dp_sgd}"])
    assert "augmentations" not in public_yaml(plain)
    several = read_study(write(), ["privacy={kind: dp_sgd, augmentations: 4}"])
    assert study_digest(several) != study_digest(plain)
    assert parse_study(public_yaml(several), "the hub's").privacy == several.privacy


def test_how_a_simulation_is_spread_over_a_machine_is_no_part_of_the_digest(write):
    study = read_study(write())
    spread = read_study(write(), ["simulation.engine=processes", "simulation.workers=3"])
    assert spread.simulation.workers == 3
    assert study_digest(spread) == study_digest(study)
    assert "simulation" not in public_yaml(spread)
