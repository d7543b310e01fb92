"""A start loaded into a network: each number by hand, and what is refused or told."""

from __future__ import annotations

import pytest
import torch
from bundles import write_bundle
from torch import nn

from medfed.errors import StudyError
from medfed.models.pretrained import Start
from medfed.models.pretrained.load import load_start
from medfed.runs.facts import StartFacts


def network(outputs: int = 2) -> nn.Module:
    net = nn.Module()
    net.encoder = nn.Linear(3, 4)  # 16 numbers
    net.norm = nn.BatchNorm1d(4)  # 16 numbers, and an integer counter
    net.head = nn.Linear(4, outputs)  # 5 numbers per output
    return net


def saved(tmp_path, outputs: int = 2, **wrap):
    torch.manual_seed(3)
    state = network(outputs).state_dict()
    torch.save(state, tmp_path / "old.pt")
    return state


def start(tmp_path, **settings) -> Start:
    return Start(path=str(tmp_path / "old.pt"), **settings)


def test_every_number_is_the_file_s(tmp_path):
    state = saved(tmp_path)
    net = network()
    loaded = load_start(net, start(tmp_path))
    assert loaded.share == 1
    assert loaded.anew == ()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


def test_another_head_is_refused_unless_the_study_bears_it(tmp_path):
    state = saved(tmp_path, outputs=14)
    net = network()
    before = net.head.weight.detach().clone()
    with pytest.raises(
        StudyError,
        match=r"start: old.pt is of another network: 'head.weight' has shape \(14, 4\), here \(2, 4\); "
        r"'head.bias' has shape \(14,\), here \(2,\); 76.2% agree; .*`start: {path: ..., least: 0.76}`",
    ):
        load_start(net, start(tmp_path))
    loaded = load_start(net, start(tmp_path, least=0.76))
    assert loaded.share == pytest.approx(32 / 42)
    assert torch.equal(net.encoder.weight, state["encoder.weight"])
    assert torch.equal(net.head.weight, before)
    assert loaded.lines() == [
        f"starts from old.pt, SHA-256 {loaded.sha256[:12]}: 76.2% of the network's numbers are loaded",
        "loaded: encoder: 2 tensors",
        "loaded: norm: 4 tensors",
        "new: head: 2 tensors (head.weight (2, 4), in the file it has shape (14, 4); head.bias (2,), in the "
        "file it has shape (14,))",
    ]


@pytest.mark.parametrize(
    ("width", "said"),
    [(8_000, "99.9%"), (80_000, "over 99.9%")],  # 8 numbers are new: 99.90 % and 99.99 % are loaded
)
def test_a_network_with_a_new_last_layer_is_never_said_to_be_wholly_loaded(tmp_path, width, said):
    net = nn.ModuleDict({"body": nn.Linear(width, 1, bias=False), "head": nn.Linear(1, 4)})
    torch.save({"body.weight": torch.ones(1, width)}, tmp_path / "old.pt")
    loaded = load_start(net, start(tmp_path, least=0.9))
    assert f": {said} of the network's numbers are loaded" in loaded.lines()[0]
    facts = StartFacts(file=loaded.file, sha256=loaded.sha256, share=loaded.share)
    assert f": {said} of the network's numbers are from it" in facts.sentence
    with pytest.raises(StudyError, match=f"; {said} agree"):
        load_start(net, start(tmp_path))


def test_a_share_just_below_is_refused(tmp_path):
    saved(tmp_path, outputs=14)
    with pytest.raises(StudyError, match=r"has 76.2% of this study's network, and start.least is 0.77"):
        load_start(network(), start(tmp_path, least=0.77))


def test_a_refused_file_changes_nothing(tmp_path):
    saved(tmp_path, outputs=14)
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(StudyError, match=r"of another network"):
        load_start(net, start(tmp_path))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_file_of_which_nothing_fits_is_refused_whatever_is_borne(tmp_path):
    torch.save({"x.weight": torch.ones(9)}, tmp_path / "old.pt")
    with pytest.raises(StudyError, match=r"has 0.0% of this study's network"):
        load_start(network(), start(tmp_path, least=0.0001))


def test_a_head_can_be_started_anew_though_the_file_has_one(tmp_path):
    saved(tmp_path)
    net = network()
    before = net.head.weight.detach().clone()
    loaded = load_start(net, start(tmp_path, anew=("head",)), "head")
    assert torch.equal(net.head.weight, before)
    assert set(loaded.anew) == {"head.weight", "head.bias"}
    with pytest.raises(StudyError, match=r"start.anew: the network has no part 'tail'"):
        load_start(net, start(tmp_path, anew=("tail",)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_loaded(tmp_path, bad):
    state = saved(tmp_path)
    state["encoder.bias"][1] = bad
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(StudyError, match=r"'encoder.bias' holds NaN or infinity"):
        load_start(network(), start(tmp_path))


def test_half_precision_is_loaded_as_the_network_s_own(tmp_path):
    state = saved(tmp_path)
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "old.pt")
    net = network()
    load_start(net, start(tmp_path))
    assert net.encoder.weight.dtype == torch.float32
    assert torch.equal(net.encoder.weight, state["encoder.weight"].half().float())


def test_adapters_of_a_run_are_not_taken_for_weights(tmp_path):
    torch.save({"encoder.parametrizations.weight.original": torch.ones(4, 3)}, tmp_path / "old.pt")
    with pytest.raises(StudyError, match=r"old.pt is of a run with train.lora .* \(medfed export"):
        load_start(network(), start(tmp_path))


def test_a_bundle_is_named_with_its_licence(tmp_path):
    torch.manual_seed(3)
    folder = write_bundle(tmp_path / "spleen", network().state_dict())
    loaded = load_start(network(), Start(path=str(folder)))
    assert loaded.lines()[0] == (
        f"starts from spleen (Spleen 0.2.0), SHA-256 {loaded.sha256[:12]}, licence Apache-2.0: 100.0% of the "
        "network's numbers are loaded"
    )
    assert loaded.classes == ("background", "spleen")


def test_a_name_of_the_file_never_reaches_a_log_as_it_is(tmp_path):
    state = saved(tmp_path)
    torch.save({**state, "x\n\x1b[31m": torch.ones(2)}, tmp_path / "old.pt")
    lines = load_start(network(), start(tmp_path)).lines()
    assert lines[-1] == (
        "left out of the file: (a name of other characters): 1 tensor ((a name of other characters) (2,))"
    )


def test_blocks_are_told_apart_below_a_wrapper(tmp_path):
    torch.manual_seed(3)
    torch.save(nn.ModuleDict({"model": network(14)}).state_dict(), tmp_path / "old.pt")
    lines = load_start(nn.ModuleDict({"model": network()}), start(tmp_path, least=0.5)).lines()
    assert [line.partition(" (")[0] for line in lines[1:]] == [
        "loaded: model.encoder: 2 tensors",
        "loaded: model.norm: 4 tensors",
        "new: model.head: 2 tensors",
    ]
