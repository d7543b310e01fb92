"""Compressions in turn, alone and over the real callback, exchange and hub: bytes, memory, cheating sites."""

from __future__ import annotations

import json
import math
import re
from typing import ClassVar

import msgspec
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import QuorumError, StudyError, UpdateError, WireError
from medfed.federation.config import SiteConfig
from medfed.federation.site import SiteRun, train_site
from medfed.privacy import Privacy
from medfed.study.reading import read_study
from medfed.study.validation import validate
from medfed.wire import encoding as wire
from medfed.wire.compression import (
    Compression,
    Encoded,
    compress,
    compress_update,
    decompress,
    decompress_update,
)
from medfed.wire.compression.int4 import Int4
from medfed.wire.compression.int8 import Int8
from medfed.wire.compression.low_rank import LowRank
from medfed.wire.compression.top_k import TopK
from medfed.wire.update import Update
from medfed.wire.weights import Difference, digest, weights_of

torch.set_num_threads(1)

SITES, ROUNDS = ("north", "south"), 8
STACK = (TopK(share=0.1), Int8())


class Net(pl.LightningModule):
    scores = ("val/accuracy",)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 150), nn.BatchNorm1d(150), nn.ReLU(), nn.Linear(150, 2))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    def __init__(self, site: str) -> None:
        super().__init__()
        features = torch.randn(64, 20, generator=torch.Generator().manual_seed(sum(site.encode())))
        self.rows = TensorDataset(features, (features[:, :3].sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, 16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, 64)


def untrained() -> Net:
    torch.manual_seed(7)
    return Net()


class Dies(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 3 and batch_idx == 1:
            raise RuntimeError("killed")


def run(folder, stages=STACK, *, dies: bool = False, resume: bool = False, watch=lambda report: None):
    def site(name):
        def work(exchange):
            training = SiteConfig(ROUNDS, 1, seed=3, accelerator="cpu", compress=stages)
            callbacks = [Dies()] if dies and name == "south" else []
            train_site(name, untrained(), Data(name), exchange, training,
                       SiteRun(folder / name, resume, callbacks=callbacks))  # fmt: skip

        return work

    return simulated(
        {name: site(name) for name in SITES}, weights_of(untrained()), rule=FedAvg(), rounds=ROUNDS,
        minimum=2, seed=3, folder=folder / "hub", compress=stages, on_round=watch,
    )  # fmt: skip


def test_it_learns_and_sends_the_bytes_that_its_settings_say(tmp_path):
    reports = []
    run(tmp_path, watch=reports.append)
    learnt = [answer.scalars["val/accuracy"] for answer in reports[-1].results]
    assert min(learnt) > 0.9
    # By hand: of each of n values a tenth, one byte each, its place in four, and a scale (four) for 256 of
    # them; batch norm's two statistics of 150 go as they are, differences in float64.
    tensors = [tensor.numel() for name, tensor in weights_of(untrained()).items() if "running" not in name]
    sent_values = [math.ceil(0.1 * count) for count in tensors]
    expected = sum(5 * count + 4 * math.ceil(count / 256) for count in sent_values) + 2 * 150 * 8
    for report in reports[:-1]:
        for answer in report.results:
            assert answer.status == "merged"
            assert expected < answer.bytes_up < expected + 4096  # safetensors' header and ours
    plain = []
    run(tmp_path / "plain", (), watch=plain.append)
    whole = 4 * sum(tensor.numel() for tensor in weights_of(untrained()).values())
    assert whole < plain[0].results[0].bytes_up < whole + 4096
    assert min(answer.scalars["val/accuracy"] for answer in plain[-1].results) > 0.9


def test_a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    undisturbed = digest(run(tmp_path / "a").weights)
    with pytest.raises(QuorumError, match="south: absent"):
        run(tmp_path / "b", dies=True)
    assert digest(run(tmp_path / "b", resume=True).weights) == undisturbed
    assert digest(run(tmp_path / "c", (TopK(share=0.1),)).weights) != undisturbed


def test_the_hub_merges_what_was_sent_and_the_site_keeps_the_rest(tmp_path):
    # One site with a fixed delta, two rounds: what the hub holds is exactly the sum of what `compress`
    # says by itself.
    weights = {"w": torch.zeros(40, 30)}
    delta = {"w": torch.randn(40, 30, generator=torch.Generator().manual_seed(1))}

    def site(exchange):
        left: dict = {}
        received = exchange.fetch("a", 0)
        while not received.final:
            update, left = compress_update(STACK, Update("a", received.round + 1, delta, 3), left)
            assert update.delta == {}
            exchange.send(update)
            received = exchange.fetch("a", received.round + 1)
        exchange.send(Update("a", received.round + 1, {}, 0))

    final = simulated({"a": site}, weights, rule=FedAvg(), rounds=2, compress=STACK)
    first, state = compress(STACK, delta, {})
    second, _ = compress(STACK, delta, state)
    torch.testing.assert_close(
        final.weights["w"], decompress(STACK, first)["w"] + decompress(STACK, second)["w"], rtol=0, atol=1e-6
    )


# ----------------------------------------------------------------------------------------- a site that cheats

WEIGHTS = {"w": torch.zeros(40, 30)}
DELTA = {"w": torch.ones(40, 30)}


def packed(stages=STACK) -> Update:
    return compress_update(stages, Update("bad", 1, DELTA, 3), {})[0]


def with_header(update: Update, **stages) -> Update:
    tree = {**update.encoded.header["stages"], **stages}
    return Update("bad", 1, {}, 3, encoded=Encoded(update.encoded.groups, {"stages": tree}))


def with_group(update: Update, group: str, tensor: torch.Tensor) -> Update:
    groups = {**update.encoded.groups, group: {"w": tensor}}
    return Update("bad", 1, {}, 3, encoded=Encoded(groups, update.encoded.header))


def nested(shapes: dict) -> dict:
    return {"values": {"header": {"shapes": shapes}, "inner": {}}}


CHEATS = {
    "a header that claims a model of 32 GB": (
        lambda: with_header(packed(), header={"shapes": {"w": [1 << 16, 1 << 17]}}),
        "its header claims 8589934592 values, the global model has 1200",
    ),
    "the same, one stage further down": (
        lambda: with_header(packed(), inner=nested({"w": [1 << 16, 1 << 17]})),
        "its header claims 8589934592 values, the global model has 1200",
    ),
    "another shape": (
        lambda: compress_update(STACK, Update("bad", 1, {"w": torch.ones(30, 40)}, 3), {})[0],
        "'w' has shape (30, 40), the global model has (40, 30)",
    ),
    "another name": (
        lambda: compress_update(STACK, Update("bad", 1, {"v": torch.ones(40, 30)}, 3), {})[0],
        "'w' is missing; the global model has it",
    ),
    "a scale that is not a number": (
        lambda: with_group(packed(), "values.scales", torch.tensor([float("nan")])),
        "a compressed update's 'w' decodes to values that are not finite",
    ),
    "a place outside the tensor": (
        lambda: with_group(packed(), "places", torch.full((120,), 5000, dtype=torch.int32)),
        "has an index outside its 1200 values",
    ),
    "codes of another type": (
        lambda: with_group(packed(), "values.codes", torch.zeros(120)),
        "'w' of group 'codes' holds 120 torch.float32",
    ),
    "an exact tensor that is not finite": (
        lambda: with_group(packed(), "exact", torch.full((40, 30), float("inf"))),
        "'w' has 1200 of 1200 values that are not finite",
    ),
    "no stages": (
        lambda: Update("bad", 1, {}, 3, encoded=Encoded({}, {})),
        "a compressed update's header has no stages",
    ),
    "other stages": (lambda: packed((Int8(),)), "has no 'w' in its group 'places'"),
    "no compression": (lambda: Update("bad", 1, DELTA, 3), "is not compressed, but the study compresses"),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_malicious_update_is_refused_by_name_and_round(cheat):
    make, reason = CHEATS[cheat]

    def site(name):
        def work(exchange):
            exchange.fetch(name, 0)
            exchange.send(
                make() if name == "bad" else compress_update(STACK, Update(name, 1, DELTA, 3), {})[0]
            )
            exchange.fetch(name, 1)
            exchange.send(Update(name, 2, {}, 0))

        return work

    reports = []
    simulated(
        {"bad": site("bad"), "good": site("good")}, WEIGHTS, rule=FedAvg(), rounds=1, compress=STACK,
        on_round=reports.append,
    )  # fmt: skip
    answers = {answer.site: answer for answer in reports[0].results}
    assert answers["good"].status == "merged"
    assert answers["bad"].status == "refused"
    assert "'bad'" in answers["bad"].reason
    assert "round 1" in answers["bad"].reason
    assert reason in answers["bad"].reason


def test_the_header_of_a_later_stage_is_checked_against_the_model_too():
    update = compress_update((LowRank(rank=2), Int8()), Update("bad", 4, DELTA, 3), {})[0]
    tree = {
        **update.encoded.header["stages"],
        "inner": {"left": {"header": {"shapes": {"w": [99, 99]}}, "inner": {}}},
    }
    bad = Update("bad", 4, {}, 3, encoded=Encoded(update.encoded.groups, {"stages": tree}))
    with pytest.raises(UpdateError, match="update of site 'bad' for round 4: its header claims 9801 values"):
        decompress_update((LowRank(rank=2), Int8()), bad, WEIGHTS)


def test_a_study_that_does_not_compress_refuses_a_compressed_update():
    with pytest.raises(
        UpdateError, match="'bad' for round 1 is compressed, but the study names no compression"
    ):
        decompress_update((), packed(), WEIGHTS)
    assert decompress_update((), Update("a", 1, DELTA, 3), WEIGHTS).delta is DELTA


def test_the_wire_carries_it_and_refuses_tensors_whose_header_says_nothing():
    update = packed()
    decoded = wire.decode_update(wire.encode_update(update, "s"), WEIGHTS, "s")
    assert decoded.encoded.header == update.encoded.header
    assert (
        decompress_update(STACK, decoded, WEIGHTS)
        .delta["w"]
        .equal(decompress_update(STACK, update, WEIGHTS).delta["w"])
    )
    data = wire.encode_update(update)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["medfed"])
    del header["encoded"]
    silent = safetensors.torch.save(safetensors.torch.load(data), metadata={"medfed": json.dumps(header)})
    with pytest.raises(
        WireError, match="site 'bad' holds compressed tensors, but its header does not say how"
    ):
        wire.decode_update(silent, WEIGHTS)
    assert b"encoded" not in wire.encode_update(Update("a", 1, DELTA, 3))


def test_values_that_diverged_are_refused_with_site_and_round():
    far = {"w": torch.full((4, 4), float("inf"))}
    with pytest.raises(UpdateError, match=r"update of site 'a' for round 2: 'w' can't be compressed"):
        compress_update(STACK, Update("a", 2, Difference(far, {"w": torch.zeros(4, 4)}), 1), {})


# --------------------------------------------------------------------------------------------- the study file

STUDY = """
name: t
task: {{kind: tabular, classes: [a, b]}}
network: {{kind: fully_connected}}
data: {{kind: table, target: y, features: [x]}}
train: {{rounds: 1}}
sites: {{north: north.csv}}
{more}
"""


def study(tmp_path, more: str):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(more=more))
    return read_study(path)


def test_a_study_names_its_compressions_and_a_typing_error_is_answered(tmp_path):
    assert study(tmp_path, "compress: [{kind: top_k, share: 0.01}, {kind: int8}]").compress == (
        TopK(share=0.01),
        Int8(),
    )
    assert study(tmp_path, "").compress == ()
    with pytest.raises(StudyError, match=re.escape("no 'topk'; did you mean 'top_k'?")):
        study(tmp_path, "compress: [{kind: topk}]")
    with pytest.raises(
        StudyError, match="'int8' leaves no floats that 'top_k' could shorten; make it the last"
    ):
        study(tmp_path, "compress: [{kind: int8}, {kind: top_k}]")


class Masked(Privacy, frozen=True, tag="masked"):
    reveals_each_update: ClassVar[bool] = False


def test_compression_under_masks_that_only_a_sum_takes_off_is_refused(tmp_path):
    plain = study(tmp_path, "compress: [{kind: int8}]")
    with pytest.raises(StudyError, match="compress: privacy 'masked' masks each update"):
        validate(msgspec.structs.replace(plain, privacy=Masked()), "study.yaml")


def test_a_stack_compresses_the_values_it_passes_on() -> None:
    g = torch.Generator().manual_seed(3)
    sent = {"w": torch.randn(1000, generator=g)}
    encoded, _ = compress([TopK(share=0.1), Int8(block=50)], sent, {})
    # 100 values: 4 bytes for each place, 1 for each code, 4 for each of two scales.
    assert encoded.bytes == 100 * 4 + 100 + 2 * 4
    alone, _ = TopK(share=0.1).encode(sent, {})
    short = Int8(block=50).decode(Int8(block=50).encode(alone.groups["values"] | {}, {})[0])["w"]
    decoded = decompress([TopK(share=0.1), Int8(block=50)], encoded)["w"]
    assert torch.equal(decoded[alone.groups["places"]["w"].long()], short)


@pytest.mark.parametrize(
    "stages", [[Int4()], [TopK(share=0.1)], [TopK(share=0.1), Int4()], [LowRank(rank=1)]], ids=str
)
def test_gradient_descent_with_feedback_reaches_the_minimum(stages: list[Compression]) -> None:
    # |w - c|^2 / 2 with steps of 0.1: compressed steps end at c, because what is left out is made up for.
    g = torch.Generator().manual_seed(4)
    centre = torch.randn(12, 10, generator=g)
    w, state = torch.zeros(12, 10), {}
    for _ in range(600):
        encoded, state = compress(stages, {"w": 0.1 * (centre - w)}, state)  # type: ignore[assignment]
        w = w + decompress(stages, encoded)["w"]
    assert float((w - centre).norm() / centre.norm()) < 1e-3
