"""A site whose model is not the hub's stops before its first epoch and names both sides."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import MedfedError, QuorumError, StudyError
from medfed.federation.callback import FederatedCallback
from medfed.federation.same_model import (
    check_optimisers,
    check_privacy,
    check_same_model,
    refuse_shards,
)
from medfed.privacy import NoPrivacy
from medfed.privacy.dp_sgd import DPSGD
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.encoding import decode_global, encode_global
from medfed.wire.update import GlobalModel
from medfed.wire.weights import load, weights_of


def hub(**shapes) -> GlobalModel:
    return GlobalModel(0, {name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()})


OWN = {"net.weight": torch.zeros(2, 3), "net.bias": torch.zeros(2)}

DIFFERENT = {
    "shape": (hub(net_weight=(3, 3), net_bias=(2,)), r"1 tensors.*'net.weight' is \(2, 3\) .* \(3, 3\) at"),
    "broadcast": (hub(net_weight=(1, 3), net_bias=(2,)), r"'net.weight' is \(2, 3\) here and \(1, 3\) at"),
    "scalar": (hub(net_weight=(2, 3), net_bias=()), r"'net.bias' is \(2,\) here and \(\) at the hub"),
    "not here": (hub(net_weight=(2, 3), net_bias=(2,), x=(4,)), r"'x' is missing here and \(4,\) at the hub"),
    "not there": (hub(net_weight=(2, 3)), r"'net.bias' is \(2,\) here and missing at the hub"),
    "many": (hub(**{f"x{n}": (1,) for n in range(20)}), "22 tensors differ: .*; and 14 more"),
}  # fmt: skip


@pytest.mark.parametrize("received, message", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_tensors_that_differ_are_named_with_both_shapes(received, message):
    with pytest.raises(StudyError, match="site 'north': its model is not the hub's, " + "(.*)" + message):
        check_same_model("north", OWN, received)


def test_the_same_names_and_shapes_pass():
    check_same_model("north", OWN, hub(net_weight=(2, 3), net_bias=(2,)))


@pytest.mark.parametrize(
    "own, theirs, message",
    [
        (
            ("healthy", "ill"),
            ("ill", "healthy"),
            "are healthy, ill, the hub's are ill, healthy; give the same",
        ),
        (("healthy", "ill"), (), "are healthy, ill, the hub's are not given"),
        ((), ("healthy", "ill"), "are not given, the hub's are healthy, ill"),
    ],
)
def test_classes_are_compared_in_order(own, theirs, message):
    with pytest.raises(StudyError, match=message):
        check_same_model("north", {}, GlobalModel(0, {}, classes=theirs), own)
    check_same_model("north", {}, GlobalModel(0, {}, classes=theirs), theirs)


def test_a_hubs_names_are_shown_as_one_line():
    with pytest.raises(StudyError, match=r"'a\\nb' is missing here"):
        check_same_model("north", {}, GlobalModel(0, {"a\nb": torch.zeros(1)}))


def test_classes_travel_with_the_model_and_a_model_without_them_has_the_bytes_it_had():
    plain, pinned = GlobalModel(1, OWN), GlobalModel(1, OWN, classes=("healthy", "ill"))
    assert decode_global(encode_global(pinned)).classes == ("healthy", "ill")
    assert decode_global(encode_global(plain)).classes == ()
    assert b"classes" not in encode_global(plain)


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"weight": torch.ones(1, 3)}, r"'weight' has shape \(2, 3\) in Linear, the weights to .* \(1, 3\)"),
        ({"bias": torch.ones(())}, r"'bias' has shape \(2,\) in Linear, the weights to load have shape \(\)"),
        ({"other": torch.ones(2)}, "'other' is missing in Linear"),
    ],
)  # fmt: skip
def test_nothing_is_broadcast_into_a_module(weights, message):
    with pytest.raises(StudyError, match=message):
        load(torch.nn.Linear(3, 2), weights)


class Net(pl.LightningModule):
    steps = 0

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, outputs)

    def training_step(self, batch, index):
        Net.steps += 1
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def site(outputs, classes):
    def work(exchange):
        trainer = pl.Trainer(
            max_epochs=1, callbacks=[FederatedCallback("a", exchange, classes=classes)], logger=False,
            enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Net(outputs), DataLoader(TensorDataset(torch.ones(4, 3)), 4))

    return work


@pytest.mark.parametrize(
    "outputs, classes, message",
    [
        (1, ["ill", "healthy"], "'net.bias' is .1,. here and .2,. at the hub"),
        (2, ["healthy", "ill"], "the classes of its model"),
    ],
)
def test_a_site_with_another_model_stops_before_its_first_step(outputs, classes, message):
    Net.steps = 0
    with pytest.raises(QuorumError, match=message) as caught:
        medfed.run_federation(
            {"a": site(outputs, classes)},
            weights_of(Net(2)),
            rule=FedAvg(),
            rounds=1,
            classes=("ill", "healthy"),
        )
    assert isinstance(caught.value.__cause__, StudyError)
    assert Net.steps == 0


def test_the_same_classes_train():
    names = ("ill", "healthy")
    final = medfed.run_federation(
        {"a": site(2, names)}, weights_of(Net(2)), rule=FedAvg(), rounds=1, classes=names
    )
    assert final.round == 1


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_shard_the_model_are_refused(name):
    sharding = type("Mine", (type(name, (), {}),), {})()
    with pytest.raises(StudyError, match=f"site 'a': under {name} each process holds a part of the model"):
        refuse_shards("a", sharding)
    assert isinstance(getattr(pl.strategies, name), type)
    refuse_shards("a", pl.strategies.DDPStrategy())


def test_a_fit_that_is_followed_by_another_is_told_how():
    def twice(exchange):
        federated = medfed.FederatedCallback("a", exchange)
        for _ in range(2):
            trainer = pl.Trainer(
                max_epochs=1, callbacks=[federated], logger=False, enable_checkpointing=False,
                accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(Linear(), DataLoader(TensorDataset(torch.ones(4, 2)), 2))

    with pytest.raises(QuorumError, match=r"if another fit follows, give .*close_at_end=False"):
        medfed.run_federation({"a": twice}, weights_of(Linear()), rule="fedavg", rounds=2)


class Linear(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.net(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("hub, site", [(SecureSum(), NoPrivacy()), (NoPrivacy(), SecureSum())])
def test_one_half_of_a_privacy_mechanism_is_refused_before_anyone_waits(hub, site):
    received = decode_global(
        encode_global(GlobalModel(0, {}, rule="fedavg", privacy="" if hub == NoPrivacy() else "secure_sum"))
    )
    with pytest.raises(
        StudyError, match=r"its privacy mechanism is '(none|secure_sum)', the hub's is '(?!\1)"
    ):
        check_privacy("north", site, received)
    check_privacy("north", hub, received)


def test_a_mechanism_that_is_the_sites_alone_needs_no_hub():
    check_privacy("north", DPSGD(epsilon=8.0), GlobalModel(0, {}, rule="fedavg"))
    check_privacy("north", SecureSum(), GlobalModel(3, {}, final=True))  # says nothing of training


@pytest.mark.parametrize("hub, site", [(SecureSum(), NoPrivacy()), (NoPrivacy(), SecureSum())])
def test_a_federation_of_one_half_ends_at_once_and_not_at_its_deadline(hub, site):
    def function(name):
        return lambda exchange: train(FederatedCallback(name, exchange, privacy=site), nn.Linear(2, 1))

    sites, start = {name: function(name) for name in "abc"}, weights_of(Own(nn.Linear(2, 1)))
    with pytest.raises(MedfedError) as raised:
        medfed.run_federation(sites, start, rule="fedavg", rounds=1, privacy=hub, deadline_s=3600)
    assert "its privacy mechanism is" in str(raised.value.__cause__)


class Own(pl.LightningModule):
    """Trains a layer that is registered, and one that is not."""

    def __init__(self, layer: nn.Module, hidden: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.hidden = layer, [hidden] if hidden else []

    def training_step(self, batch, index):
        return sum(one(batch[0]).square().mean() for one in (self.layer, *self.hidden))

    def configure_optimizers(self):
        hidden = [parameter for one in self.hidden for parameter in one.parameters()]
        return torch.optim.SGD([*self.layer.parameters(), *hidden], lr=0.1)


def train(callback, layer, hidden=None):
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Own(layer, hidden), DataLoader(TensorDataset(torch.ones(4, 2)), 2))


def test_an_optimiser_that_trains_what_is_no_parameter_of_the_module_is_refused():
    def fit(exchange):
        train(FederatedCallback("a", exchange), nn.Linear(2, 1), hidden=nn.Linear(2, 3))

    with pytest.raises(QuorumError, match=r"train 2 tensors .* of shapes \(3, 2\), \(3,\); they would never"):
        medfed.run_federation({"a": fit}, weights_of(Own(nn.Linear(2, 1))), rule="fedavg", rounds=1)


def test_what_an_optimiser_holds_and_does_not_train_is_no_matter():
    layer, fixed = nn.Linear(2, 1), nn.Parameter(torch.ones(1), requires_grad=False)
    check_optimisers("a", layer, [torch.optim.SGD([*layer.parameters(), fixed], lr=0.1)])


class Changing(Own):
    """Changes its layer in one of its hooks."""

    def __init__(self, change) -> None:
        super().__init__(nn.Linear(2, 1))
        self.change = change

    def on_train_start(self):
        self.change(self)


def run_once(make, **settings):
    """Return the log of a federation of one site of two epochs, whose module `make` returns."""

    def fit(exchange):
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[FederatedCallback("a", exchange, **settings)], logger=False,
            enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(make(), DataLoader(TensorDataset(torch.ones(4, 2)), 2))

    return medfed.run_federation({"a": fit}, weights_of(make()), rule="fedavg", rounds=2)


def test_a_layer_that_is_replaced_after_the_optimiser_was_made_is_refused():
    def replaced(module):
        module.layer = nn.Linear(2, 1)

    with pytest.raises(QuorumError, match=r"train 2 tensors .* of shapes \(1, 2\), \(1,\); they would never"):
        run_once(lambda: Changing(replaced))


def test_a_round_that_does_not_train_from_the_hubs_model_is_told(caplog):
    run_once(lambda: Changing(lambda module: nn.init.zeros_(module.layer.weight)))
    assert "site 'a': trains from other weights than the hub's: layer.weight changed" in caplog.text
    caplog.clear()
    run_once(lambda: Changing(lambda module: None))
    assert "trains from other weights" not in caplog.text


class FromCopy(torch.optim.SGD):
    """Steps a copy of the weights that it keeps, as optimisers of half-precision weights do."""

    def step(self, closure=None):
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            kept = self.state[parameter].setdefault("master", parameter.detach().clone())
            parameter.data.copy_(kept.sub_(parameter.grad, alpha=0.1))
        return loss


class Copying(Own):
    optimiser = FromCopy

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 1))

    def configure_optimizers(self):
        return self.optimiser(self.layer.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "optimiser, at_merge, told",
    [(FromCopy, "keep", True), (FromCopy, "reset", False), (torch.optim.Adam, "keep", False)],
)
def test_an_optimiser_that_keeps_a_copy_of_the_weights_is_told(optimiser, at_merge, told, caplog):
    run_once(type("Module", (Copying,), {"optimiser": optimiser}), optimiser_state=at_merge)
    assert ("its optimiser FromCopy keeps a copy of the weights (master)" in caplog.text) is told


def test_sites_of_one_process_that_train_the_same_module_are_refused():
    module = Own(nn.Linear(2, 1))

    def site(name):
        def fit(exchange):
            trainer = pl.Trainer(
                max_epochs=1, callbacks=[FederatedCallback(name, exchange)], logger=False, accelerator="cpu",
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(module, DataLoader(TensorDataset(torch.ones(4, 2)), 2))

        return fit

    match = r"its module shares 2 parameters with that of site '[ab]': layer.bias, layer.weight; both would"
    with pytest.raises(QuorumError, match=match):
        medfed.run_federation({n: site(n) for n in "ab"}, weights_of(module), rule="fedavg", rounds=1)


def test_sites_may_share_what_they_do_not_train():
    shared = nn.Linear(2, 2).requires_grad_(False)

    def site(name):
        return lambda exchange: train(
            FederatedCallback(name, exchange), nn.Sequential(shared, nn.Linear(2, 1))
        )

    start = weights_of(Own(nn.Sequential(shared, nn.Linear(2, 1))))
    final = medfed.run_federation({n: site(n) for n in "ab"}, start, rule="fedavg", rounds=1)
    assert torch.equal(final.weights["layer.0.weight"], shared.weight)
