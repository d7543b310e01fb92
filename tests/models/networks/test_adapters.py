"""Training a part of a network: its trained and exchanged tensors, and low-rank adapters as in the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks._adapters import add_lora, merge_adapters, prepare_training, unfreeze
from medfed.models.networks.unet import UNet
from medfed.models.pretrained import Start
from medfed.pipeline import train as run
from medfed.pipeline.evaluate import evaluate
from medfed.pipeline.factory import module_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Lora
from medfed.wire.weights import weights_of

torch.set_num_threads(1)


RANK_2 = Lora(rank=2, alpha=8.0, also=())
BOTH = Lora(rank=2, alpha=8.0, also=(), matrices="ab")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 40), nn.Linear(40, 2))


def test_an_adapted_network_begins_as_it_was():
    plain, adapted = small(), small()
    add_lora(adapted, RANK_2)
    x = torch.randn(3, 4, 3, 3, 3)
    assert torch.equal(plain(x), adapted(x))


def test_the_weight_is_w_plus_alpha_over_r_b_a_by_hand():
    network = small()
    before = network[3].weight.detach().clone()
    add_lora(network, RANK_2)
    adapter = network[3].parametrizations.weight[0]
    with torch.no_grad():
        adapter.b.copy_(torch.arange(80.0).view(40, 2))
    a, b = adapter.a.detach().numpy().astype(float), np.arange(80.0).reshape(40, 2)
    expected = before.numpy() + 8.0 / 2 * np.einsum("or,ri->oi", b, a)
    assert network[3].weight.detach().numpy() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_only_adapters_train_and_the_small_layer_has_none():
    network = small()
    whole = sum(parameter.numel() for parameter in network.parameters())
    add_lora(network, BOTH)
    trained = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    # Conv: 16 rows of 4 * 27; linear: 40 rows of 16; the last of 2 rows would need 2 * 42 numbers for its 80.
    assert sum(trained.values()) == 2 * (16 + 108) + 2 * (40 + 16)
    assert sum(trained.values()) < 0.15 * whole
    one = small()
    add_lora(one, RANK_2)
    assert sum(p.numel() for p in one.parameters() if p.requires_grad) == 2 * 16 + 2 * 40  # B alone
    unfreeze(network, ["4"])
    assert {"4.weight", "4.bias"} <= {name for name, p in network.named_parameters() if p.requires_grad}
    with pytest.raises(StudyError, match="rank 99: no layer of this network is large enough"):
        add_lora(small(), Lora(rank=99))


def test_the_mean_of_b_is_the_mean_of_the_layers_and_that_of_a_and_b_is_not():
    """FFA-LoRA: with A alike everywhere, averaging B averages the weights; averaging both does not."""

    def hospitals(lora: Lora) -> list[nn.Module]:
        sites = [small(), small()]
        for number, site in enumerate(sites):
            add_lora(site, lora)
            with torch.no_grad():
                for name, parameter in sorted(site.named_parameters()):
                    if parameter.requires_grad:
                        drawn = np.random.default_rng([number, len(name)]).normal(size=parameter.shape)
                        parameter.copy_(torch.from_numpy(drawn))
        return sites

    def off(lora: Lora) -> float:
        north, south = hospitals(lora)
        merged = small()
        add_lora(merged, lora)
        sent = [weights_of(site, trained_only=True) for site in (north, south)]
        state = dict(merged.named_parameters())
        with torch.no_grad():
            for name in sent[0]:
                state[name].copy_((sent[0][name] + sent[1][name]) / 2)
        mean = (north[3].weight + south[3].weight) / 2
        return float((merged[3].weight - mean).detach().abs().max())

    assert off(RANK_2) < 1e-5
    assert off(BOTH) > 0.5


def test_a_is_that_of_the_seed_and_the_layer_whatever_was_drawn_before():
    torch.manual_seed(5)
    one, other = small(), small()
    torch.manual_seed(7)
    add_lora(one, RANK_2)
    torch.manual_seed(7)
    torch.randn(100)
    add_lora(other, RANK_2)
    a = [net[3].parametrizations.weight[0].a for net in (one, other)]
    assert torch.equal(*a)
    assert float(a[0].detach().abs().max()) <= 1 / 16**0.5  # as nn.Linear: within 1 / sqrt(in)
    assert not torch.equal(a[0][:, :16], one[0].parametrizations.weight[0].a[:, :16])


def test_norms_and_the_last_layer_train_whole_and_have_no_adapter():
    network = UNet(channels=(8, 16), norm="batch").build(1, 2, (16, 16, 16))
    add_lora(network, Lora(rank=1), ("norm", "head"), "model.2")
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    norms = {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, nn.BatchNorm3d)
        for name in ("weight", "bias")
    }
    head = {name for name, _ in network.named_parameters() if name.startswith("model.2.")}
    assert head
    assert not any("parametrizations" in name for name in head)
    assert trained == norms | head | {name for name in trained if name.endswith("weight.0.b")}


@pytest.mark.parametrize("only, parts", [(("head",), {"head"}), (("norm", "head"), {"norm", "head"})])
def test_norms_and_the_last_layer_train_without_adapters(only, parts):
    network = UNet(channels=(8, 16, 32), norm="group").build(1, 2, (16, 16, 16))
    prepare_training(network, None, None, only, "model.2")
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    head = {name for name, _ in network.named_parameters() if name.startswith("model.2.")}
    norms = {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, nn.GroupNorm)
        for name in ("weight", "bias")
    }
    assert norms - head
    assert trained == (head | norms if "norm" in parts else head)


def test_a_part_of_the_network_that_is_called_head_is_itself():
    network = nn.ModuleDict({"head": nn.Linear(2, 2), "last": nn.Linear(2, 2)})
    prepare_training(network, None, None, ("head",), "last")
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_without_a_last_layer_of_the_network_head_is_no_part():
    with pytest.raises(StudyError, match=r"train\.only: the network has no part 'head'"):
        prepare_training(small(), None, None, ("head",))


def test_merged_adapters_leave_a_plain_network_that_computes_the_same():
    network = small()
    names = set(network.state_dict())
    add_lora(network, RANK_2)
    for layer in (network[0], network[3]):
        nn.init.normal_(layer.parametrizations.weight[0].b)
    x = torch.randn(3, 4, 3, 3, 3)
    with torch.no_grad():
        before = network(x)
        merged = merge_adapters(network)
        assert set(merged.state_dict()) == names
        assert torch.allclose(merged(x), before, atol=1e-6)


def test_a_layer_that_the_start_lacks_must_train(tmp_path):
    torch.manual_seed(1)
    state = small().state_dict()
    torch.save(
        {name: tensor for name, tensor in state.items() if not name.startswith("3.")}, tmp_path / "a.pt"
    )
    start = Start(path=str(tmp_path / "a.pt"), least=0.1)
    for lora, only in ((RANK_2, ()), (None, ("4",))):
        with pytest.raises(StudyError, match=r"nothing for '3.weight', .* train.only, such as \[3\]"):
            prepare_training(small(), start, lora, only)
    prepare_training(small(), start, RANK_2, ("3",))
    prepare_training(small(), start, None, ("3", "4"))


def test_a_part_that_is_not_there_is_answered():
    network = UNet(channels=(4, 8)).build(1, 2, (16, 16, 16))
    part = next(name for name, _ in network.named_modules() if name).split(".")[0]
    with pytest.raises(
        StudyError, match=f"train.only: the network has no part '{part}x'; there are .*{part}"
    ):
        unfreeze(network, [f"{part}x"])


STUDY = """
name: part
seed: 2
task: {{kind: tabular, classes: [healthy, disease]}}
network: {{kind: fully_connected, hidden: [32, 32]}}
data: {{kind: table, target: y, features: [a, b, c]}}
train: {{rounds: 3, epochs: 1, batch: 8, optimiser: {{kind: adam, lr: 0.01}}, {more}}}
sampling: {{minimum: 2}}
evaluation: {{draws: 20, smallest_group: 1, local_models: false}}
sites: {{north: north.csv, south: south.csv}}
{start}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    for number, site in enumerate(("north", "south")):
        drawn = np.random.default_rng(number)
        rows = [f"{a},{b},{c},{int(a > b)}" for a, b, c in drawn.normal(size=(60, 3))]
        (folder / f"{site}.csv").write_text("a,b,c,y\n" + "\n".join(rows) + "\n")
    (folder / "whole.yaml").write_text(STUDY.format(more="accumulate: 1", start=""))
    return folder


def study(place, name: str, more: str):
    (place / f"{name}.yaml").write_text(
        STUDY.format(more=more, start="start: whole/checkpoints/federated.ckpt")
    )
    return read_study(place / f"{name}.yaml")


@pytest.mark.slow
def test_a_study_trains_and_sends_a_part_of_what_another_one_learnt(place):
    run.train(place / "whole.yaml", out=place / "whole")
    whole = torch.load(place / "whole" / "checkpoints" / "federated.ckpt", weights_only=True)["state_dict"]
    sent = {}
    for name, more, trained in (
        ("head", "only: [output]", {"network.output.weight", "network.output.bias"}),
        ("lora", "lora: {rank: 2}", None),
    ):
        part = study(place, name, more)
        done = run.train(part, out=place / name)
        final = torch.load(done.checkpoint("federated"), weights_only=True)["state_dict"]
        module = module_of(part)
        module.load_state_dict(final)  # complete, including the tensors that were never exchanged
        exchanged = weights_of(module, trained_only=True)
        if trained is not None:
            assert set(exchanged) == trained
            changed = {key for key in whole if not torch.equal(whole[key], final[key])}
            assert changed == trained
        for key, tensor in final.items():
            if key.endswith("original"):
                source = key.replace("parametrizations.weight.original", "weight")
                assert torch.equal(tensor, whole[source]), key
        sent[name] = sum(tensor.numel() for tensor in exchanged.values())
        lines = (done.path / "rounds.jsonl").read_text()
        assert '"status":"merged"' in lines
    assert sent["head"] == 32 * 2 + 2
    # Of the layers of 32 by 3 and 32 by 32; the last one's adapter would be larger than its 2 by 32, and
    # it trains whole.
    # Of the adapters B alone is sent.
    assert sent["lora"] == sent["head"] + 2 * 32 + 2 * 32
    evaluated = evaluate(place / "lora", place / "north.csv", name="again", all_cases=True)
    assert evaluated.report.exists()


def test_what_a_study_begins_with_counts_in_its_digest_and_where_it_lies_does_not(place):
    save_checkpoint(place / "one.ckpt", weights_of(module_of(read_study(place / "whole.yaml"))), 0)
    (place / "elsewhere").mkdir(exist_ok=True)
    (place / "elsewhere" / "two.ckpt").write_bytes((place / "one.ckpt").read_bytes())
    digests = {}
    for name, start in (("a", "one.ckpt"), ("b", "elsewhere/two.ckpt"), ("c", "north.csv")):
        (place / f"{name}.yaml").write_text(STUDY.format(more="lora: {rank: 2}", start=f"start: {start}"))
        digests[name] = study_digest(read_study(place / f"{name}.yaml"))
    assert digests["a"] == digests["b"] != digests["c"]
    (place / "d.yaml").write_text(STUDY.format(more="lora: {rank: 2}", start="start: nothing.ckpt"))
    with pytest.raises(StudyError, match=r"d\.yaml: start: no such file"):
        read_study(place / "d.yaml")


def test_a_checkpoint_of_another_network_is_named(tmp_path):
    save_checkpoint(tmp_path / "other.ckpt", {"network.0.weight": torch.zeros(1)}, 1)
    with pytest.raises(StudyError, match=r"other.ckpt is of another network: '0.weight' has shape \(1,\)"):
        prepare_training(small(), Start(path=str(tmp_path / "other.ckpt")), Lora(), ())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no checkpoint"], ids=["empty", "cut", "text"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "old.ckpt").write_bytes(content)
    with pytest.raises(
        StudyError, match=r"^start: old\.ckpt cannot be read as a checkpoint; .* copy it again"
    ):
        prepare_training(small(), Start(path=str(tmp_path / "old.ckpt")), None, ())


@pytest.mark.parametrize("content", [[1.0], {"weights": {}}, {"state_dict": [1.0]}, {"state_dict": {"a": 1}}])
def test_a_file_of_torch_that_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(StudyError, match=r"^start: old\.ckpt is no checkpoint: .* under 'state_dict'"):
        prepare_training(small(), Start(path=str(tmp_path / "old.ckpt")), None, ())
