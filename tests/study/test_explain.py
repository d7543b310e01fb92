"""Errors of a file that does not decode, in plain words: the place, what was found, the nearest name."""

from __future__ import annotations

import pytest

from medfed.study._explain import _parse_path, _place, _plain_words, _value_at, describe_value, nearest


def test_a_path_has_keys_and_indices() -> None:
    assert _parse_path("$.sites[...].x[12]") == ("sites", "...", "x", 12)
    assert _parse_path("$") == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        ({"a": 1, "b": 2, 3: 3, "d": 4, "e": 5}, "keys (a, b, 3, d)"),
        ([1, 2], "a list of 2"),
        ("x", "'x'"),
        (1.5, "1.5"),
        ("y" * 100, "'" + "y" * 59),
    ],
)
def test_a_value_is_described_in_few_words(value: object, words: str) -> None:
    assert describe_value(value) == words


def test_the_most_similar_name_is_offered_and_none_if_all_differ() -> None:
    assert nearest("fedagv", ["fedavg", "median"]) == "; did you mean 'fedavg'?"
    assert nearest("xyz", ["fedavg", "median"]) == ""


def test_a_place_is_the_flag_that_set_it_or_the_line_of_the_nearest_key_above() -> None:
    lines = {("train",): 3, ("train", "rounds"): 4}
    assert _place(("train", "rounds"), "study.yaml", lines, []) == "study.yaml:4: train.rounds"
    assert _place(("train", "epochs"), "study.yaml", lines, []) == "study.yaml:3: train.epochs"
    assert _place(("seed",), "study.yaml", lines, []) == "study.yaml: seed"
    assert _place(("train", "rounds"), "study.yaml", lines, ["train.rounds=x"]) == "--set train.rounds"
    assert _place(("train",), "study.yaml", lines, ["train.rounds=x"]) == "--set train"
    # 'train.rounds' is no part of 'train.round'.
    assert _place(("train", "round"), "study.yaml", lines, ["train.rounds=x"]) == "study.yaml:3: train.round"


def test_types_are_named_in_plain_words() -> None:
    assert _plain_words("Expected `int`, got `str`") == "expected a whole number"
    assert _plain_words("Expected `int | null`, got `str`") == "expected a whole number or null"
    assert _plain_words("Expected `array` of length 3, got 2") == "expected a list of length 3"


def test_a_value_is_found_by_its_path_or_is_none() -> None:
    raw = {"a": [{"b": 1}]}
    assert _value_at(raw, ("a", 0, "b")) == 1
    assert _value_at(raw, ("a", 1)) is None
    assert _value_at(raw, ("a", 0, "b", "c")) is None


def test_a_key_of_any_site_stands_as_a_star() -> None:
    path = _parse_path("$.site_overrides[...].epochs")
    lines = {("site_overrides",): 7}
    assert _place(path, "study.yaml", lines, []) == "study.yaml:7: site_overrides.*.epochs"
    assert _place(path, "study.yaml", {}, []) == "study.yaml: site_overrides.*.epochs"
    # A flag names the site itself.
    flag = ["site_overrides.north.epochs=x"]
    assert _place(path, "study.yaml", lines, flag) == "--set site_overrides.north.epochs"
    assert _place(path, "study.yaml", lines, ["site_overrides.north.seed=1"]) == (
        "study.yaml:7: site_overrides.*.epochs"
    )
