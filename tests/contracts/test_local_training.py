"""What every local method keeps: it trains, resumes bit for bit, sends what it declares, and
cares for no order.

The methods are those the folder holds, so a new file is held to this without an edit here. A method that has
a hub's half is tried with it.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from simulated import simulated
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medfed import registry as kinds
from medfed.aggregation import Rule
from medfed.errors import QuorumError, WireError
from medfed.federation.config import SiteConfig
from medfed.federation.site import PERSONAL, SiteRun, train_site
from medfed.local_training import LocalMethod
from medfed.local_training._local import Step
from medfed.local_training._train_pass import TrainEvaluator
from medfed.models.networks import Network
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Task, Training
from medfed.wire.encoding import decode_update
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Weights, digest, load, local_names, weights_of

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")

METHODS = kinds.kinds("local_training")
RULES = kinds.kinds("aggregation")
NETWORKS = kinds.kinds("networks")
ROUNDS, EPOCHS = 3, 2

# Settings that make the large networks small; two dimensions do the rest.
SMALL: dict[str, dict[str, Any]] = {
    "attention_unet": {"channels": (4, 8)},
    "densenet121": {"features": 8, "growth": 4, "blocks": (1, 1)},
    "dynunet": {"filters": (4, 8, 8), "strides": (1, 2, 2)},
    "fully_connected": {"hidden": (5, 4)},
    "resnet": {"width": 4},
    "segresnet": {"filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
    "senet": {"layers": (1, 1, 1, 1)},
    "swinunetr": {"features": 12, "depths": (1, 1, 1, 1), "window": 2, "norm": "group"},
    "unet": {"channels": (4, 8, 8)},
    "unetr": {"hidden": 24, "mlp": 24, "heads": 2, "features": 4},
    "vit": {"hidden": 24, "mlp": 24, "layers": 2, "heads": 2},
}


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> LocalMethod:
    return METHODS[request.param]()  # type: ignore[return-value]


def rule_for(method: LocalMethod) -> Rule:
    return RULES[method.rules[0] if method.rules else "fedavg"]()  # type: ignore[return-value]


class Net(pl.LightningModule):
    """Batch norm and dropout, so that buffers and random draws count."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 2)

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1]))

    def class_losses(self, batch):
        each = nn.functional.cross_entropy(
            self.head(self.body(batch[0])), batch[1], reduction="none"
        ).double()
        return {
            str(k): torch.stack([each[batch[1] == k].sum(), (batch[1] == k).sum().double()]) for k in range(2)
        }

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    def __init__(self, site: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(site.encode()))
        features = torch.randn(16, 5, generator=generator)
        self.rows = TensorDataset(features, (features.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, 4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, 8)


class Dies(pl.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise RuntimeError("killed")


def net() -> Net:
    torch.manual_seed(7)
    return Net()


def run(
    folder: Path,
    method: LocalMethod | None,
    sites: tuple[str, ...] = ("north", "south"),
    *,
    dies: int | None = None,
    resume: bool = False,
    seen: Any = lambda data: None,
    accumulate: int = 1,
) -> GlobalModel:
    def site(name: str):
        def work(exchange):
            train_site(
                name,
                net(),
                Data(name),
                exchange,
                SiteConfig(
                    ROUNDS * EPOCHS, EPOCHS, seed=3, local=method, accelerator="cpu", accumulate=accumulate
                ),
                SiteRun(
                    folder / name,
                    resume,
                    callbacks=[Dies(dies)] if dies is not None and name == "south" else [],
                ),
            )

        return work

    return simulated(
        {name: site(name) for name in sites},
        weights_of(net(), method.keep_local() if method else ()),
        rule=rule_for(method) if method else RULES["fedavg"](),  # type: ignore[arg-type]
        rounds=ROUNDS,
        minimum=len(sites),
        seed=3,
        folder=folder / "hub",
        on_bytes=seen,
    )


def own_models(folder: Path) -> dict[str, str]:
    return {path.parent.name: digest(load_file(path)) for path in sorted(folder.glob(f"*/{PERSONAL}"))}


@pytest.mark.slow
def test_it_trains_alike_whatever_the_order_of_sites_and_after_a_kill(
    method: LocalMethod, tmp_path: Path
) -> None:
    final = run(tmp_path / "a", method)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in final.weights.values())
    models = own_models(tmp_path / "a")
    turned = run(tmp_path / "b", method, ("south", "north"))
    assert digest(turned.weights) == digest(final.weights)
    assert own_models(tmp_path / "b") == models
    with pytest.raises(QuorumError, match="south: absent"):
        run(tmp_path / "c", method, dies=3)
    resumed = run(tmp_path / "c", method, resume=True)
    assert digest(resumed.weights) == digest(final.weights)
    assert own_models(tmp_path / "c") == models


def test_one_site_alone_learns_and_what_it_sends_is_declared(method: LocalMethod, tmp_path: Path) -> None:
    messages: list[bytes] = []
    final = run(tmp_path, method, ("north",), seen=messages.append)
    before, after = net(), net()
    load(after, final.weights)
    own = tmp_path / "north" / PERSONAL
    if own.exists():
        load(after, load_file(own))
    rows = Data("north").rows.tensors

    def loss(module: Net) -> float:
        module.eval()
        return float(nn.functional.cross_entropy(module.head(module.body(rows[0])), rows[1]))

    assert loss(after) < loss(before)
    kept = local_names(net(), method.keep_local())
    for data in messages:
        try:
            update = decode_update(data, final.weights)
        except WireError:
            continue  # a global model
        assert not kept & set(update.delta)
        assert tuple(update.groups) == (method.sends if update.delta else ())
        for name in rule_for(method).needs_scalars if update.delta else ():
            assert name in update.scalars


def test_it_works_with_an_accumulated_gradient(method: LocalMethod, tmp_path: Path) -> None:
    final = run(tmp_path, method, accumulate=3)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in final.weights.values())


def test_a_study_file_can_hold_it_and_its_file_cites_a_paper(method: LocalMethod) -> None:
    assert msgspec.json.decode(msgspec.json.encode(method), type=type(method)) == method
    assert kinds.summary(type(method)).endswith((".", ";", ":"))
    text = importlib.import_module(type(method).__module__).__doc__ or ""
    assert "arXiv:" in text


def test_the_hubs_half_and_the_sites_half_name_each_other(method: LocalMethod) -> None:
    for name in method.rules:
        assert kinds.kind_of(method) in RULES[name].needs_local  # type: ignore[attr-defined]
    for name, record in RULES.items():
        for local in record.needs_local:  # type: ignore[attr-defined]
            assert name in METHODS[local].rules  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------- under every network


@cache
def module_and_batches(name: str) -> tuple[pl.LightningModule, list[dict], str]:
    """A task's module with a small network, two batches, and where the network's last layer is."""
    network: Network = NETWORKS[name](**SMALL.get(name, {}))  # type: ignore[assignment]
    needs = network.serves[0]
    flat = hasattr(network, "spatial_dims")
    if flat:
        network = msgspec.structs.replace(network, spatial_dims=2)  # type: ignore[call-arg]
    size = (32, 32) if flat else None
    tasks = {task.needs: tag for tag, task in kinds.kinds("tasks").items()}  # type: ignore[attr-defined]
    record = kinds.kinds("tasks")[tasks[needs]]
    task: Task = record(classes=("none", "some"))  # type: ignore[assignment]
    torch.manual_seed(0)
    built = network.build(1 if flat else 5, task.outputs, size)
    module = task.module(built, Training(SGD(lr=0.01), Constant(), epochs=2, patch=size))
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(2):
        if needs == "segment":
            image = torch.randn(2, 1, *size, generator=generator)
            batches.append({"image": image, "label": (image > 0.5).to(torch.uint8)})
        elif needs == "classify":
            batches.append(
                {"image": torch.randn(2, 1, *size, generator=generator), "target": torch.tensor([0, 1])}
            )
        else:
            batches.append(
                {"features": torch.randn(4, 5, generator=generator), "target": torch.tensor([0, 1, 1, 0])}
            )
    return module, batches, f"network.{network.head}"


def one_round(
    method: LocalMethod, module: pl.LightningModule, batches: list[dict], received: GlobalModel, state: Any
) -> Any:
    """The verbs in their order, as the callback calls them."""
    module.train()
    load(module, received.weights)
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    state = method.start(module, received, state)
    state = method.evaluate_train(
        TrainEvaluator("a", module, lambda: iter(batches), lambda batch: module.training_step(batch, 0)),
        state,
    )
    for index, batch in enumerate(batches):

        def own(batch: dict = batch) -> Tensor:
            return module.training_step(batch, 0)

        state = method.step(Step(module, batch, own, optimiser, progress=index / len(batches)), state)
        optimiser.zero_grad()
        method.loss(module, own, state).backward()
        method.gradient(module, state)
        optimiser.step()
    return method.finish(module, received, state, len(batches), 0.01)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_it_works_under_every_network(method: LocalMethod, network: str) -> None:
    module, batches, head = module_and_batches(network)
    if hasattr(method, "head"):
        method = msgspec.structs.replace(method, head=head)
    kept = method.keep_local()
    if "norm" in kept and not any("Norm" in type(m).__name__ for m in module.modules()):
        pytest.skip("a network without norms has none to keep")
    before = weights_of(module)
    try:
        rule = rule_for(method)
        weights = weights_of(module, kept)
        rule_state, state = rule.init(weights), {}
        for number in range(2):
            groups: dict[str, Weights] = {name: rule_state[name] for name in rule.broadcast}
            state, sent = one_round(
                method, module, batches, GlobalModel(number, weights, groups=groups), state
            )
            update = Update("a", number + 1, _delta(module, weights), 4, method.scalars(state), sent)
            weights, rule_state = rule.merge([update], rule_state, weights)
        assert set(sent) == set(method.sends)
        for tensors in (weights, *state.values(), *sent.values()):
            assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in tensors.values())
        assert any(not torch.equal(weights[name], before[name]) for name in weights)
        own = method.personal(module, state)
        if own is not None:
            assert set(own) == set(weights_of(module))
    finally:
        load(module, before)
        module.zero_grad()


def _delta(module: nn.Module, weights: Weights) -> Weights:
    now = weights_of(module)
    return {name: now[name].double() - tensor.double() for name, tensor in weights.items()}
