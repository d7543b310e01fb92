"""A site evaluates the received model before training, which does not change the training."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fednoro import FedNoRo, noisy_sites
from medfed.aggregation.qfedavg import QFedAvg
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import CallbackOptions
from medfed.local_training._train_pass import TrainEvaluator
from medfed.models.tasks._module import class_losses
from medfed.testing._local_training import Net, Rows, net
from medfed.wire.update import Update
from medfed.wire.weights import digest, load, weights_of

torch.set_num_threads(1)


def fit(module, callback, data, epochs: int) -> None:
    pl.Trainer(
        max_epochs=epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)


def federated(
    rule,
    needs,
    sites=("north", "south"),
    rounds=3,
    data=lambda name: Rows(name).train_dataloader(),
    module=net,
):
    reports, models = [], []

    def site(name):
        return lambda exchange: fit(
            module(),
            FederatedCallback(name, exchange, 1, seed=3, options=CallbackOptions(required_scalars=needs)),
            data(name),
            rounds,
        )

    final = simulated(
        {name: site(name) for name in sites},
        weights_of(module()),
        rule=rule,
        rounds=rounds,
        on_round=reports.append,
        on_model=lambda current: models.append(current.weights),
    )
    return final, reports, models


def mean_loss(weights, rows) -> float:
    module = net()
    load(module, weights)
    module.eval()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module.head(module.body(rows[0])), rows[1]))


def test_the_losses_before_training_are_the_received_models_over_all_training_cases() -> None:
    _, reports, models = federated(FedAvg(), ["train/loss_before", "train/class_loss"])
    for report, received in zip(reports[:3], models, strict=False):
        for answer in report.results:
            rows = Rows(answer.site).rows.tensors
            assert answer.scalars["train/loss_before"] == pytest.approx(mean_loss(received, rows), rel=1e-5)
            by_class = [mean_loss(received, (rows[0][rows[1] == k], rows[1][rows[1] == k])) for k in (0, 1)]
            for number, loss in enumerate(by_class):
                assert answer.scalars[f"train/class_loss/{number}"] == pytest.approx(loss, rel=1e-5)
            assert answer.scalars["train/class_loss"] == pytest.approx(sum(by_class) / 2, rel=1e-5)


def test_the_pass_changes_no_bit_of_the_training() -> None:
    plain = federated(FedAvg(), [])[0]
    looked = federated(FedAvg(), ["train/loss_before", "train/class_loss"])[0]
    assert digest(plain.weights) == digest(looked.weights)


def test_qfedavg_has_what_it_needs_in_a_real_federation() -> None:
    final, reports, _ = federated(QFedAvg(q=1.0, learning_rate=0.1), QFedAvg().needs_scalars)
    assert [answer.status for answer in reports[0].results] == ["merged", "merged"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in final.weights.values())


def test_the_passes_gradient_is_the_mean_over_batches_and_statistics_stay() -> None:
    module = net()
    rows = Rows("north").rows.tensors
    batches = [(rows[0][i : i + 4], rows[1][i : i + 4]) for i in range(0, 16, 4)]
    module.body[3].p = 0.0
    module.log = lambda *args, **kwargs: None
    before = digest(weights_of(module))
    gradient = TrainEvaluator(
        "a", module, lambda: iter(batches), lambda batch: module.training_step(batch, 0)
    ).gradient()
    assert digest(weights_of(module)) == before
    module.zero_grad()
    for batch in batches:
        (module.training_step(batch, 0) / 4).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)


def test_a_module_without_a_loss_by_class_is_named() -> None:
    class Bare(pl.LightningModule):
        pass

    with pytest.raises(StudyError, match=r"site 'north': .* which Bare lacks"):
        TrainEvaluator("north", Bare(), lambda: iter([]), lambda batch: torch.zeros(())).class_losses()


def test_class_losses_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    losses = class_losses(logits, torch.tensor([0, 1, 1]), ["no", "yes"])
    each = -logits.log_softmax(1)
    assert losses["no"].tolist() == pytest.approx([float(each[0, 0]), 1.0])
    assert losses["yes"].tolist() == pytest.approx([float(each[1, 1] + each[2, 1]), 2.0])


@pytest.mark.slow
def test_a_hospital_with_wrong_labels_is_found_and_weighs_less() -> None:
    """Six sites with the same problem, two of them with 45 of 100 labels wrong."""

    def rows(name: str, count: int = 96) -> TensorDataset:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        features = torch.randn(count, 5, generator=generator)
        target = (features.sum(1) > 0).long()
        if name.startswith("noisy"):
            wrong = torch.rand(count, generator=generator) < 0.45
            target = torch.where(wrong, 1 - target, target)
        return TensorDataset(features, target)

    def data(name: str) -> DataLoader:
        return DataLoader(rows(name), 16, shuffle=True)

    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU())

    def module() -> Plain:
        torch.manual_seed(7)
        return Plain()

    sites = ("a", "b", "c", "d", "noisy-e", "noisy-f")
    rule = FedNoRo(warmup=3)
    final, reports, _ = federated(rule, rule.needs_scalars, sites, rounds=8, data=data, module=module)
    for report in reports[3:8]:
        reported = [Update(a.site, report.round, {}, 1, a.scalars) for a in report.results]
        assert noisy_sites(reported) == {"noisy-e", "noisy-f"}
    plain, _, _ = federated(FedAvg(), [], sites, rounds=8, data=data, module=module)

    def clean_loss(weights) -> float:
        tried = module().eval()
        load(tried, weights)
        x, y = rows("test", 500).tensors
        with torch.no_grad():
            return float(nn.functional.cross_entropy(tried.head(tried.body(x)), y))

    assert clean_loss(final.weights) < clean_loss(plain.weights)
