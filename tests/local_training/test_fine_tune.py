"""Fine-tuning on quadratics, with every step computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from quadratics import RATE
from torch import nn

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.local_training.fine_tune import FineTune
from medfed.testing._local_training import Rows

torch.set_num_threads(1)


def test_fine_tuning_is_training_on_from_the_final_model(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def training_step(self, batch, index):
            return ((self.w - 2.0) ** 2).sum() / 2

        def validation_step(self, batch, index):
            self.log("val/loss", ((self.w.detach() - 2.0) ** 2).sum())

        def configure_optimizers(self):
            optimiser = torch.optim.SGD(self.parameters(), lr=RATE)
            return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.1)]

    from safetensors.torch import load_file

    from medfed.federation.config import SiteConfig
    from medfed.federation.site import PERSONAL, SiteRun, train_site

    scores = {}

    def site(exchange):
        training = SiteConfig(2, 1, local=FineTune(epochs=3, rate=0.5), accelerator="cpu")
        scores.update(train_site("north", Plain(), Rows("north"), exchange, training, SiteRun(tmp_path)))

    final = medfed.run_federation(
        {"north": site}, {"w": torch.zeros(1, dtype=torch.float64)}, rule=FedAvg(), rounds=2
    )
    w = 0.0
    for rate in (RATE, RATE / 10):
        for _ in range(4):
            w -= rate * (w - 2.0)
    assert float(final.weights["w"]) == pytest.approx(w, rel=1e-12)
    for _ in range(3 * 4):
        w -= RATE * 0.5 * (w - 2.0)
    assert float(load_file(tmp_path / PERSONAL)["w"]) == pytest.approx(w, rel=1e-12)
    assert scores["val/personal/loss"] == pytest.approx((w - 2.0) ** 2, rel=1e-6)
    assert scores["val/loss"] > scores["val/personal/loss"]
