"""Names of a file's tensors and of a network's, matched by name and shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.errors import StudyError
from medfed.models.pretrained.names import match_names

NET = {"encoder.0.weight": (4, 1), "encoder.0.bias": (4,), "out.weight": (2, 4)}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.network.", "module.model.net."])
def test_a_wrapper_s_prefix_is_found(prefix):
    result = {prefix + name: shape for name, shape in NET.items()}
    matching = match_names(NET, result)
    assert (matching.stripped, matching.added) == (prefix, "")
    assert matching.source == {name: prefix + name for name in NET}


def test_an_encoder_alone_gets_the_prefix_it_has_in_the_network():
    own = {f"swinViT.{name}": shape for name, shape in NET.items()} | {"decoder.weight": (9, 9)}
    matching = match_names(own, {f"module.{name}": shape for name, shape in NET.items()})
    assert (matching.stripped, matching.added) == ("module.", "swinViT.")
    assert set(matching.source) == {f"swinViT.{name}" for name in NET}


def test_a_shape_decides_between_prefixes_and_a_differing_head_is_still_named():
    result = {"a." + name: shape for name, shape in NET.items()} | {"b.encoder.0.weight": (5, 1)}
    result["a.out.weight"] = (14, 4)
    matching = match_names(NET, result)
    assert matching.stripped == "a."
    assert matching.source["out.weight"] == "a.out.weight"  # of another shape, which `load` says


def test_renamed_parts_are_whole_dotted_ones():
    own = {"mlp.linear1.weight": (3, 3), "mlp.linear1x.weight": (2, 2)}
    result = {"mlp.fc1.weight": (3, 3), "mlp.fc1x.weight": (2, 2)}
    matching = match_names(own, result, {"mlp.fc1": "mlp.linear1"})
    assert matching.source == {"mlp.linear1.weight": "mlp.fc1.weight"}


def test_a_renaming_that_does_nothing_or_joins_two_is_refused():
    with pytest.raises(StudyError, match=r"start.names: no tensor of the file has 'fc1' in its name"):
        match_names(NET, NET, {"fc1": "linear1"})
    with pytest.raises(StudyError, match=r"start.names: two tensors of the file would have the same name"):
        match_names(NET, {"a.weight": (1,), "b.weight": (1,)}, {"a": "b"})


def test_nothing_agrees_and_nothing_is_matched():
    assert match_names(NET, {"something.else": (1,)}).source == {}
    assert match_names(NET, {}).source == {}


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=9), st.tuples(st.integers(0, 3)), max_size=9))
def test_no_tensor_of_the_file_is_used_twice_and_all_names_exist(found):
    source = match_names(NET, found).source
    assert len(set(source.values())) == len(source)
    assert set(source) <= set(NET)
    assert set(source.values()) <= set(found)
