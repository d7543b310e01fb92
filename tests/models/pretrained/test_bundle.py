"""A bundle's network read as data: literals and references, and never what MONAI would run."""

from __future__ import annotations

import json

import pytest
import torch
from bundles import METADATA, SEGRESNET, write_bundle

from medfed.errors import StudyError
from medfed.models.pretrained.bundle import describe_bundle, network_definition
from medfed.models.pretrained.source import find_source


def definition(tmp_path, network: object, **more: object):
    return network_definition(
        find_source(write_bundle(tmp_path / "b", {"a": torch.ones(1)}, network, **more))
    )


@pytest.mark.parametrize(
    "target", ["SegResNet", "monai.networks.nets.SegResNet", "monai.networks.nets.segresnet.SegResNet"]
)
def test_a_network_is_read_by_its_class(tmp_path, target):
    result = definition(tmp_path, {**SEGRESNET, "_target_": target})
    assert result.name == "SegResNet"
    assert result.arguments == {key: value for key, value in SEGRESNET.items() if key != "_target_"}


def test_references_to_literals_are_followed(tmp_path):
    network = {
        **SEGRESNET,
        "init_filters": "@sizes#first",
        "blocks_down": "$@blocks",
        "blocks_up": ["@sizes::list::0"],
    }
    result = definition(tmp_path, network, sizes={"first": "@eight", "list": [1]}, eight=8, blocks=[1, 1])
    assert (result.arguments["init_filters"], result.arguments["blocks_down"]) == (8, [1, 1])
    assert result.arguments["blocks_up"] == [1]


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.nn.Linear",
     "monai.networks.nets.SegResNet.forward", "monai.bundle.run", "$SegResNet",
     "monai.networks.nets", "builtins.eval", "", None, 3, "monai.networks.nets.a.b.SegResNet"],
)  # fmt: skip
def test_no_other_class_or_function_is_a_network(tmp_path, target):
    with pytest.raises(StudyError, match=r"train.json: network_def: _target_ is .*only networks of monai"):
        definition(tmp_path, {**SEGRESNET, "_target_": target})


@pytest.mark.parametrize(
    "value",
    ["$__import__('os').system('true')", "$@eight + 1", "@eight.real", "$@eight; import os",
     "@missing", "%other.json",
     "@eight#0", "$(@eight)", "@blocks#9", "$", "@"],
)  # fmt: skip
def test_an_expression_is_refused_and_shown(tmp_path, value):
    with pytest.raises(StudyError, match=r"network_def: init_filters: is '.*Python of a bundle is never run"):
        definition(tmp_path, {**SEGRESNET, "init_filters": value}, eight=8, blocks=[1, 1])


def test_an_expression_deep_inside_is_refused_too(tmp_path):
    with pytest.raises(StudyError, match=r"Python of a bundle is never run"):
        definition(tmp_path, {**SEGRESNET, "norm": ["GROUP", {"num_groups": "$8"}]})


def test_a_reference_to_itself_ends(tmp_path):
    with pytest.raises(StudyError, match=r"nested too deeply, or refers to itself"):
        definition(tmp_path, {**SEGRESNET, "init_filters": "@one"}, one="@two", two="@one")


def test_an_object_is_no_argument(tmp_path):
    with pytest.raises(
        StudyError, match=r"act: is an object of 'torch.nn.ReLU'; an argument must be a number"
    ):
        definition(tmp_path, {**SEGRESNET, "act": {"_target_": "torch.nn.ReLU"}})


def test_inference_json_is_asked_second_and_a_missing_network_is_answered(tmp_path):
    folder = write_bundle(tmp_path / "b", {"a": torch.ones(1)}, "$torch.jit.load('x')")
    with pytest.raises(
        StudyError, match=r"none of configs/train.json, configs/inference.json defines a network"
    ):
        network_definition(find_source(folder))
    (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": SEGRESNET}))
    assert network_definition(find_source(folder)).name == "SegResNet"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_object_is_a_damaged_bundle(tmp_path, content):
    folder = write_bundle(tmp_path / "b", {"a": torch.ones(1)})
    (folder / "configs" / "train.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"b: configs/train.json is no JSON object; the bundle is damaged"):
        network_definition(find_source(folder))


def test_a_file_that_is_no_bundle_defines_no_network(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(StudyError, match=r"start is a.pt, which is no MONAI bundle and defines no network"):
        network_definition(find_source(tmp_path / "a.pt"))


def test_metadata_that_say_nothing_or_nonsense_describe_nothing(tmp_path):
    folder = write_bundle(tmp_path / "b", {"a": torch.ones(1)})
    result = describe_bundle(find_source(folder))
    assert result == ("Spleen 0.2.0", "Apache-2.0", ("background", "spleen"))
    nonsense = {**METADATA, "license": ["x"], "name": "a\n\x1b[0mb" + "c" * 999, "network_data_format": []}
    (folder / "configs" / "metadata.json").write_text(json.dumps(nonsense))
    result = describe_bundle(find_source(folder))
    assert (result.licence, result.classes) == ("", ())
    assert result.title.startswith("a  [0mbccc")
    assert len(result.title) < 220
