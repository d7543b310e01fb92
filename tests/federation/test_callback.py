"""The callback in anybody's Trainer: sampling, mixed precision, accumulation, checkpoints."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.wire.weights import digest, weights_of


class Net(pl.LightningModule):
    def __init__(self, optimiser: str = "sgd") -> None:
        super().__init__()
        self.optimiser = optimiser
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def validation_step(self, batch, index):
        self.log("val/loss", nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1]))

    def configure_optimizers(self):
        if self.optimiser == "adam":
            return torch.optim.Adam(self.parameters(), lr=0.01)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(site: str, count: int = 12) -> TensorDataset:
    generator = torch.Generator().manual_seed(sum(site.encode()))
    features = torch.randn(count, 4, generator=generator)
    return TensorDataset(features, (features[:, 0] > 0).long())


def net(**settings) -> Net:
    torch.manual_seed(5)
    return Net(**settings)


def trainer(epochs: int, *callbacks, **settings) -> pl.Trainer:
    plain = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**plain, **settings},
    )


def run(sites, rounds=2, epochs=1, *, callback=None, settings=None, extra=(), module=net, **federation):
    modules = {site: module() for site in sites}

    def work(site):
        def fit(exchange):
            federated = FederatedCallback(site, exchange, epochs, **(callback or {}))
            fitted = trainer(rounds * epochs, federated, *extra, **(settings or {}))
            fitted.fit(modules[site], DataLoader(rows(site), 4), DataLoader(rows("val"), 6))

        return fit

    final = simulated(
        {site: work(site) for site in sites},
        weights_of(module(), (callback or {}).get("keep_local", ())),
        rule=FedAvg(),
        rounds=rounds,
        **federation,
    )
    return final, modules


def test_sites_that_were_not_drawn_do_not_train_and_end_with_the_final_model():
    reports = []
    final, modules = run("abcd", rounds=6, fraction=0.5, minimum=2, seed=1, on_round=reports.append)
    for report in reports[:6]:
        assert sorted(answer.status for answer in report.results) == ["merged"] * 2 + ["not sampled"] * 2
    assert {digest(weights_of(module)) for module in modules.values()} == {digest(final.weights)}


def test_each_epoch_of_a_site_is_trained_once_for_each_round_it_was_drawn_for():
    class Epochs(pl.Callback):
        def __init__(self):
            self.count = 0

        def on_train_epoch_start(self, trainer, pl_module):
            self.count += 1

    counter, reports = Epochs(), []
    run("abcd", rounds=6, epochs=2, fraction=0.5, minimum=2, extra=[counter], on_round=reports.append)
    merged = sum(answer.status == "merged" for report in reports for answer in report.results)
    assert counter.count == merged * 2 == 6 * 2 * 2


@pytest.mark.parametrize(
    "settings", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}]
)
def test_lightnings_own_settings_work(settings):
    final, modules = run("ab", settings=settings)
    assert {tensor.dtype for tensor in final.weights.values()} == {torch.float32}
    assert {digest(weights_of(module)) for module in modules.values()} == {digest(final.weights)}


def test_a_default_checkpoint_holds_the_merged_weights_and_their_score(tmp_path):
    keeper = ModelCheckpoint(dirpath=tmp_path, monitor="val/loss", filename="best", save_top_k=1)
    module = net()

    def fit(exchange):
        federated = FederatedCallback("north", exchange, 1)
        trainer(3, federated, keeper, enable_checkpointing=True).fit(
            module, DataLoader(rows("north"), 4), DataLoader(rows("val"), 6)
        )

    seen = []
    simulated(
        {"north": fit},
        weights_of(net()),
        rule=FedAvg(),
        rounds=3,
        on_model=lambda g: seen.append(digest(g.weights)),
    )
    saved = torch.load(keeper.best_model_path, weights_only=True)
    restored = net()
    restored.load_state_dict(saved["state_dict"])
    assert digest(weights_of(restored)) in seen
    score = trainer(1).validate(restored, DataLoader(rows("val"), 6), verbose=False)[0]["val/loss"]
    assert score == pytest.approx(float(keeper.best_model_score), rel=1e-6)


def test_epochs_that_would_never_be_merged_are_refused():
    with pytest.raises(StudyError, match="max_epochs is 3, local_epochs is 2; max_epochs must be a multiple"):
        trainer(3, FederatedCallback("a", medfed.MemoryExchange(), 2)).fit(net(), DataLoader(rows("a"), 4))


def test_keep_local_never_leaves():
    sent = []
    _, modules = run("ab", callback={"keep_local": ["norm"]}, on_bytes=sent.append)
    assert sent
    assert not any(b"running_mean" in data for data in sent)
    own = [module.state_dict()["body.1.running_mean"] for module in modules.values()]
    assert not torch.equal(*own)
    assert torch.equal(*[module.head.weight for module in modules.values()])


def test_an_optimiser_that_is_reset_holds_no_moments_while_its_site_waits():
    moments = []

    class Looks(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            moments.append(len(trainer.optimizers[0].state))

    run("a", settings={"num_sanity_val_steps": 0}, module=lambda: net(optimiser="adam"), extra=[Looks()],
        callback={"optimiser_state": "reset"})  # fmt: skip
    assert moments == [0, 0]


def test_examples_are_cases_and_not_visits():
    reports = []
    run("a", rounds=2, epochs=3, on_round=reports.append)
    assert [report.results[0].examples for report in reports] == [12, 12, 0]
