"""The contract of a local method.

It trains, resumes bit for bit, sends what it declares, and works under every network. A method whose other
half is a rule at the hub is tried with that rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation import Rule
from medfed.errors import QuorumError, WireError
from medfed.exchange import MemoryExchange
from medfed.federation.config import HubConfig, SiteConfig
from medfed.federation.simulation import simulate
from medfed.federation.site import PERSONAL, SiteRun, train_site
from medfed.local_training import LocalMethod, LocalState
from medfed.local_training._step import Step
from medfed.local_training._train_pass import TrainEvaluator
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Task, Training
from medfed.registry import kind_of, kinds
from medfed.testing._contract import OF_EVERY_KIND, Contract, raises
from medfed.testing._networks import installed, sees_images, small
from medfed.wire.encoding import decode_update
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Weights, digest, load, local_names, weights_of

check_local_method: Contract[LocalMethod] = Contract("local method", OF_EVERY_KIND)

ROUNDS, EPOCHS = 3, 2
FEATURES = 5
FLAT = (32, 32)

Batch = dict[str, Any]


class Net(pl.LightningModule):
    """A network with batch norm and dropout, so that buffers and random draws count."""

    scores = ("train/class_loss/0", "train/class_loss/1")

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 2)

    def losses(self, batch: list[Tensor]) -> Tensor:
        """Return the loss of each row."""
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1], reduction="none")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.losses(batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/loss", self.losses(batch).mean())

    def class_losses(self, batch: list[Tensor]) -> dict[str, Tensor]:
        losses = self.losses(batch).double()
        of_class = {str(k): batch[1] == k for k in range(2)}
        return {k: torch.stack([losses[rows].sum(), rows.sum().double()]) for k, rows in of_class.items()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows(pl.LightningDataModule):
    """Sixteen rows, which the site's name decides."""

    def __init__(self, site: str) -> None:
        super().__init__()
        features = torch.randn(16, FEATURES, generator=torch.Generator().manual_seed(sum(site.encode())))
        self.rows = TensorDataset(features, (features.sum(1) > 0).long())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, 4, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, 8)


class Fail(pl.Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise RuntimeError("killed")


def net() -> Net:
    torch.manual_seed(7)
    return Net()


def rule_for(method: LocalMethod | None) -> Rule:
    return kinds("aggregation")[method.rules[0] if method and method.rules else "fedavg"]()  # type: ignore[return-value]


def federate(
    folder: Path,
    method: LocalMethod | None,
    sites: tuple[str, ...] = ("north", "south"),
    *,
    failing_epoch: int | None = None,
    resume: bool = False,
    on_bytes: Callable[[bytes], None] = lambda data: None,
    accumulate: int = 1,
    checkpoint_s: float | None = None,
) -> GlobalModel:
    """Return the final model of a federation; 'south' fails in the given epoch.

    `checkpoint_s` is that of `SiteRun`: 0 lets sites go on inside a round.
    """
    settings = SiteConfig(
        ROUNDS * EPOCHS, EPOCHS, seed=3, local=method, accelerator="cpu", accumulate=accumulate
    )

    def site(name: str) -> Callable[[MemoryExchange], None]:
        failing = [Fail(failing_epoch)] if failing_epoch is not None and name == "south" else []
        run = SiteRun(folder / name, resume, callbacks=failing, checkpoint_s=checkpoint_s)

        def work(exchange: MemoryExchange) -> None:
            train_site(name, net(), Rows(name), exchange, settings, run)

        return work

    return simulate(
        {name: site(name) for name in sites},
        weights_of(net(), method.keep_local() if method else ()),
        HubConfig(ROUNDS, tuple(sorted(sites)), rule_for(method), minimum=len(sites), seed=3),
        folder=folder / "hub",
        on_bytes=on_bytes,
    )


def personal_models(folder: Path) -> dict[str, str]:
    """Return the digest of each hospital's own model."""
    return {path.parent.name: digest(load_file(path)) for path in sorted(folder.glob(f"*/{PERSONAL}"))}


def results(folder: Path, final: GlobalModel) -> dict[str, str]:
    """Return the digests of the global model and of each hospital's own."""
    return personal_models(folder) | {"global": digest(final.weights)}


def check_finite(weights: Weights) -> None:
    for name, tensor in weights.items():
        assert bool(torch.isfinite(tensor.float()).all()), name


@check_local_method.check
def the_order_of_sites_changes_no_bit(method: LocalMethod) -> None:
    with TemporaryDirectory() as name:
        first, second = Path(name) / "first", Path(name) / "second"
        expected = results(first, federate(first, method))
        assert results(second, federate(second, method, ("south", "north"))) == expected


@check_local_method.check
def a_failed_run_resumes_to_the_same_bits(method: LocalMethod) -> None:
    with TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        expected = results(whole, federate(whole, method))
        # From the round's beginning, and from its last local epoch.
        for place, seconds in (("round", None), ("epoch", 0.0)):
            resumed = Path(name) / place
            with raises(QuorumError, "south: absent"):
                federate(resumed, method, failing_epoch=3, checkpoint_s=seconds)
            again = federate(resumed, method, resume=True, checkpoint_s=seconds)
            assert results(resumed, again) == expected, place


@check_local_method.check
def one_site_alone_learns(method: LocalMethod) -> None:
    before, after = net(), net()
    with TemporaryDirectory() as name:
        final = federate(Path(name), method, ("north",))
        load(after, final.weights)
        personal = Path(name) / "north" / PERSONAL
        if personal.exists():
            load(after, load_file(personal))
    rows = list(Rows("north").rows.tensors)
    with torch.no_grad():
        losses = [float(module.eval().losses(rows).mean()) for module in (before, after)]
    assert losses[1] < losses[0]


@check_local_method.check
def what_leaves_is_what_it_declares(method: LocalMethod) -> None:
    messages: list[bytes] = []
    with TemporaryDirectory() as name:
        final = federate(Path(name), method, ("north",), on_bytes=messages.append)
    local = local_names(net(), method.keep_local())
    for data in messages:
        try:
            update = decode_update(data, final.weights)
        except WireError:
            continue  # a global model
        assert not local & set(update.delta)
        assert tuple(update.groups) == (method.sends if update.delta else ())
        for scalar in rule_for(method).needs_scalars if update.delta else ():
            assert scalar in update.scalars


@check_local_method.check
def it_works_with_an_accumulated_gradient(method: LocalMethod) -> None:
    with TemporaryDirectory() as name:
        check_finite(federate(Path(name), method, accumulate=3).weights)


@check_local_method.check
def its_rules_and_it_name_each_other(method: LocalMethod) -> None:
    rules: Any = kinds("aggregation")
    assert set(method.rules) == {name for name in rules if kind_of(method) in rules[name].needs_local}


@cache
def module_and_batches(name: str) -> tuple[pl.LightningModule, list[Batch], str]:
    """Return a task's module with a small network, two batches, and where the network's last layer is."""
    network = small(name)
    needs = network.serves[0]
    size = FLAT if sees_images(network) else None
    if size:
        network = msgspec.structs.replace(network, spatial_dims=2)
    tasks: Any = kinds("tasks")
    task: Task = next(tasks[tag] for tag in tasks if tasks[tag].needs == needs)(classes=("none", "some"))
    torch.manual_seed(0)
    built = network.build(1 if size else FEATURES, task.outputs, size)
    module = task.module(built, Training(SGD(lr=0.01), Constant(), epochs=2, patch=size))
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # no Trainer is attached
    generator = torch.Generator().manual_seed(1)
    return module, [batch_for(needs, generator) for _ in range(2)], f"network.{network.head}"


def batch_for(needs: str, generator: torch.Generator) -> Batch:
    if needs not in ("segment", "classify"):
        return {
            "features": torch.randn(4, FEATURES, generator=generator),
            "target": torch.tensor([0, 1, 1, 0]),
        }
    image = torch.randn(2, 1, *FLAT, generator=generator)
    if needs == "segment":
        return {"image": image, "label": (image > 0.5).to(torch.uint8)}
    return {"image": image, "target": torch.tensor([0, 1])}


def one_round(
    method: LocalMethod,
    module: pl.LightningModule,
    batches: list[Batch],
    received: GlobalModel,
    state: LocalState,
) -> tuple[LocalState, dict[str, Weights]]:
    """Call the method in the callback's order."""
    module.train()
    load(module, received.weights)
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01, momentum=0.9)

    def loss(batch: Batch) -> Tensor:
        return module.training_step(batch, 0)  # type: ignore[return-value]

    state = method.start(module, received, state)
    state = method.evaluate_train(TrainEvaluator("a", module, lambda: iter(batches), loss), state)
    for index, batch in enumerate(batches):

        def module_loss(batch: Batch = batch) -> Tensor:
            return loss(batch)

        state = method.step(Step(module, batch, module_loss, optimiser, progress=index / len(batches)), state)
        optimiser.zero_grad()
        method.loss(module, module_loss, state).backward()  # type: ignore[no-untyped-call]
        method.gradient(module, state)
        optimiser.step()
    return method.finish(module, received, state, len(batches), 0.01)


def train_two_rounds(method: LocalMethod, module: pl.LightningModule, batches: list[Batch]) -> None:
    before = weights_of(module)
    rule = rule_for(method)
    weights = weights_of(module, method.keep_local())
    rule_state = rule.init(weights)
    state: LocalState = {}
    for number in range(2):
        groups = {name: rule_state[name] for name in rule.broadcast}
        received = GlobalModel(number, weights, groups=groups)
        state, sent = one_round(method, module, batches, received, state)
        now = weights_of(module)
        delta = {name: now[name].double() - tensor.double() for name, tensor in weights.items()}
        update = Update("a", number + 1, delta, 4, method.scalars(state), sent)
        weights, rule_state = rule.merge([update], rule_state, weights)
    assert set(sent) == set(method.sends)
    for tensors in (weights, *state.values(), *sent.values()):
        check_finite(tensors)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights.items())
    personal = method.personal(module, state)
    assert personal is None or set(personal) == set(before)


@check_local_method.check
def it_works_under_every_network(method: LocalMethod) -> None:
    # Networks that grow from sums have no parameters, and no optimiser.
    trained = [name for name in installed() if not small(name).grows_from_sums]
    for name in trained:
        module, batches, head = module_and_batches(name)
        placed = msgspec.structs.replace(method, head=head) if hasattr(method, "head") else method
        has_norm = any("Norm" in type(part).__name__ for part in module.modules())
        if "norm" in method.keep_local() and not has_norm:
            continue
        before = weights_of(module)
        try:
            train_two_rounds(placed, module, batches)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            load(module, before)
            module.zero_grad()
