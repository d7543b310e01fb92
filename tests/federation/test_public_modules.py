"""Modules of other people's packages, as they are on PyPI, federated over two sites without a change to them.

`make networks` installs three of them. Gluonts and pytorch-forecasting want an older pandas than
constraints.txt has, so their tests run only in an environment of one's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.federation.progress_bar import RoundsBar, replace_progress_bar, use_rounds_bar

ROUNDS = 2
NEEDS = "a public package that `make networks` installs, or that wants an environment of its own"


def package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"needs {name}, {NEEDS}")


def trainer_of(module: Any, callback: Any) -> Any:
    """Return a Trainer of the Lightning package that a module is of: `lightning` or `pytorch_lightning`."""
    base = next(one for one in type(module).__mro__ if one.__name__ == "LightningModule")
    lightning = importlib.import_module(base.__module__.partition(".core")[0])
    return lightning.Trainer(
        max_epochs=ROUNDS, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def check(make: Callable[[], Any], loader: Callable[[str], Any], validates: bool = False) -> None:
    """Check that two sites train, hold one model at the end, and one alone has that of its own Trainer."""

    def seeded() -> Any:
        torch.manual_seed(0)
        return make()

    def fit(module: Any, callback: Any, site: str) -> None:
        trainer_of(module, callback).fit(module, loader(site), loader(site) if validates else None)

    def federate(sites: str) -> tuple[dict, dict]:
        modules = {site: seeded() for site in sites}

        def site(name: str) -> Callable:
            def work(exchange: Any) -> None:
                federated = medfed.FederatedCallback(name, exchange)
                fit(modules[name], federated, name)

            return work

        final = medfed.run_federation(
            {name: site(name) for name in sites}, medfed.weights_of(seeded()), rule="fedavg", rounds=ROUNDS
        )
        return dict(final.weights), modules

    start = medfed.weights_of(seeded())
    merged, modules = federate("ab")
    assert any(not torch.equal(merged[name], start[name]) for name in start)
    for module in modules.values():
        assert all(torch.equal(value, merged[name]) for name, value in medfed.weights_of(module).items())
    alone, plain = federate("a")[0], seeded()
    fit(plain, Callback(), "a")
    assert all(torch.equal(value, alone[name]) for name, value in medfed.weights_of(plain).items())


def test_the_bars_of_the_other_lightning_package_are_replaced_too():
    trainer = package("lightning.pytorch").Trainer(logger=False, enable_checkpointing=False)
    shared = RoundsBar(1)
    use_rounds_bar(shared)
    try:
        assert replace_progress_bar(trainer)
        assert trainer.progress_bar_callback.is_disabled
    finally:
        use_rounds_bar(None)
        shared.close()


def test_gluonts_deepar():
    """A probabilistic forecaster: dictionaries of series, a distribution's likelihood, its own schedule."""
    module = package("gluonts.torch.model.deepar.lightning_module").DeepARLightningModule
    size, past, future = 12, 8, 3
    settings = {"freq": "D", "context_length": 5, "prediction_length": future, "num_feat_dynamic_real": 1,
                "num_feat_static_real": 1, "num_feat_static_cat": 1, "cardinality": [1],
                "lags_seq": [1, 2, 3], "num_layers": 1, "hidden_size": 4, "dropout_rate": 0.0}  # fmt: skip

    def loader(site: str) -> DataLoader:
        generator = torch.Generator().manual_seed(ord(site))

        def series(*shape: int) -> torch.Tensor:
            return torch.rand(size, *shape, generator=generator)

        rows = [
            dict(zip(FIELDS, values, strict=True))
            for values in zip(
                torch.zeros(size, 1, dtype=torch.long), series(1), series(past, 1), series(past),
                torch.ones(size, past), series(future, 1), series(future), torch.ones(size, future),
                strict=True,
            )
        ]  # fmt: skip
        return DataLoader(rows, 4)

    check(lambda: module(model_kwargs=settings), loader)


FIELDS = ("feat_static_cat", "feat_static_real", "past_time_feat", "past_target", "past_observed_values",
          "future_time_feat", "future_target", "future_observed_values")  # fmt: skip


def test_pytorch_forecasting_nhits():
    """A forecaster that is made from a table, and logs many metrics under names of its own."""
    forecasting = package("pytorch_forecasting")
    pandas = package("pandas")

    def table(site: str) -> Any:
        generator = torch.Generator().manual_seed(ord(site))
        values = torch.rand(60, generator=generator).numpy()
        rows = pandas.DataFrame({"time": range(60), "value": values, "series": "0"})
        return forecasting.TimeSeriesDataSet(
            rows, time_idx="time", target="value", group_ids=["series"], max_encoder_length=8,
            max_prediction_length=3, time_varying_unknown_reals=["value"],
            target_normalizer=forecasting.data.TorchNormalizer(method="identity"),
        )  # fmt: skip

    def make() -> Any:
        return forecasting.NHiTS.from_dataset(
            table("a"), hidden_size=8, dropout=0.0, loss=forecasting.metrics.MAE(), learning_rate=0.01
        )

    check(make, lambda site: table(site).to_dataloader(train=False, batch_size=16))


def test_rul_adapt_supervised():
    """A regressor of remaining life that is built of two networks."""
    approach = package("rul_adapt.approach").SupervisedApproach
    model = package("rul_adapt.model")

    def make() -> Any:
        made = approach(lr=0.01, loss_type="mse", optim_type="adam")
        head = model.FullyConnectedHead(4, [1], act_func_on_last_layer=False)
        made.set_model(model.CnnExtractor(2, [3], 8, fc_units=4), head)
        return made

    def loader(site: str) -> DataLoader:
        generator = torch.Generator().manual_seed(ord(site))
        features = torch.rand(12, 2, 8, generator=generator)
        return DataLoader(TensorDataset(features, features.mean((1, 2))), 4)

    check(make, loader)


def test_mambular_mlp():
    """A classifier of tables with metrics inside it, and a schedule that waits for its validation loss."""
    task = package("mambular.base_models.lightning_wrapper").TaskModel
    mlp = package("mambular.base_models.mlp").MLP
    config = package("mambular.configs.mlp_config").DefaultMLPConfig

    def make() -> Any:
        return task(
            model_class=mlp, config=config(lr=0.01, layer_sizes=(8, 4), dropout=0.0), num_classes=2,
            cat_feature_info={"sex": 2}, num_feature_info={"age": 1, "pressure": 1},
        )  # fmt: skip

    def batch(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        numbers, sexes = (torch.stack(part) for part in zip(*rows, strict=True))
        targets = (numbers.sum(1) > 1).float()[:, None]
        return [sexes], [numbers[:, :1], numbers[:, 1:]], targets

    def loader(site: str) -> DataLoader:
        generator = torch.Generator().manual_seed(ord(site))
        numbers = torch.rand(12, 2, generator=generator)
        sexes = torch.randint(0, 2, (12, 1), generator=generator).float()
        return DataLoader(TensorDataset(numbers, sexes), 4, collate_fn=batch)

    check(make, loader, validates=True)


def test_lifestream_sequences_to_target():
    """A classifier of patients' events over time, whose batches are objects of its own."""
    supervised, nn = package("ptls.frames.supervised"), package("ptls.nn")
    padded = package("ptls.data_load.padded_batch").PaddedBatch

    def make() -> Any:
        events = nn.TrxEncoder(embeddings={"code": {"in": 6, "out": 4}}, numeric_values={"value": "identity"})
        return supervised.SequenceToTarget(
            nn.RnnSeqEncoder(events, hidden_size=8, type="gru"),
            head=nn.Head(input_size=8, objective="classification", num_classes=2),
            loss=torch.nn.NLLLoss(), metric_list=[], optimizer_partial=partial(torch.optim.Adam, lr=0.01),
            lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=10),
        )  # fmt: skip

    def batch(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        codes, values = (torch.stack(part) for part in zip(*rows, strict=True))
        lengths = torch.full((len(rows),), codes.shape[1])
        return padded({"code": codes, "value": values}, lengths), (values.mean(1) > 0.5).long()

    def loader(site: str) -> DataLoader:
        generator = torch.Generator().manual_seed(ord(site))
        codes = torch.randint(1, 6, (12, 5), generator=generator)
        return DataLoader(TensorDataset(codes, torch.rand(12, 5, generator=generator)), 4, collate_fn=batch)

    check(make, loader)
