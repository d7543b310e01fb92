"""dataset.json: what the numbers in labels mean and what channels are called, in either way of writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfed.data.layouts._dataset_json import channel_names, class_names, label_names, read_dataset_json
from medfed.errors import DataError


def test_a_json_object_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(json.dumps({"name": "Läsion"}), encoding=encoding)
        assert read_dataset_json(path) == {"name": "Läsion"}


@pytest.mark.parametrize(
    "content", ["", "[1]", "{'a': 1}", "[" * 100_000], ids=["empty", "list", "no", "deep"]
)
def test_anything_else_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"^dataset.json cannot be read as a JSON object; restore the file"):
        read_dataset_json(tmp_path / "dataset.json")
    with pytest.raises(DataError, match=r"^dataset.json cannot be read as a JSON object; restore the file"):
        read_dataset_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "labels",
    [
        {"2": "tumour", "0": "background", "1": "liver"},
        {"liver": 1, "tumour": 2, "background": 0},
        {"liver": "1", "tumour": "2", "background": " 0 "},
    ],
    ids=["Decathlon", "nnU-Net", "numbers as text"],
)
def test_both_ways_of_writing_give_the_same_names_in_the_numbers_order(labels: dict[str, object]) -> None:
    names = label_names({"labels": labels})
    assert list(names.items()) == [(0, "background"), (1, "liver"), (2, "tumour")]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "has regions"),
        ({"background": 0, "tumour": "one"}, "does not give each label one number"),
        ({"background": 0, "tumour": True}, "does not give each label one number"),
        ({"background": 0, "tumour": 0}, "does not give each label one number"),
        ({"background": 0, "tumour": -1}, "does not give each label one number"),
        ({"background": 0, "tumour": "²"}, "does not give each label one number"),
        ({}, "does not name its labels"),
        (["background", "tumour"], "does not name its labels"),
    ],
)
def test_labels_that_are_no_numbers_are_refused_with_the_reason(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"^dataset.json {message}"):
        label_names({"labels": labels})


def test_classes_are_named_only_by_numbers_without_a_gap() -> None:
    assert class_names({0: "background", 1: "liver"}) == ("background", "liver")
    assert class_names({0: "background", 2: "liver"}) == ()
    assert class_names({1: "liver", 2: "tumour"}) == ()


def test_channels_are_in_the_order_of_their_numbers_and_not_of_their_text() -> None:
    numbered = {str(n): f"c{n}" for n in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert channel_names({"channel_names": numbered}) == tuple(f"c{n}" for n in range(11))
    assert channel_names({"modality": {"0": "MRI"}}) == ("MRI",)
    assert channel_names({"channel_names": {"0": "T1"}, "modality": {"0": "MRI"}}) == ("T1",)
    assert channel_names({"channel_names": ["T1"]}) == ()
    with pytest.raises(DataError, match=r"^dataset.json does not number its channels"):
        channel_names({"channel_names": {"first": "T1"}})
