"""A tree model of one site grows by the rule after every epoch, without a hub."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from medfed.aggregation.boosted_trees import BoostedTrees as Rule
from medfed.federation.config import SiteConfig
from medfed.federation.site import train_alone
from medfed.models.networks.boosted_trees import BoostedTrees as Network
from medfed.models.optimisers.adam import Adam
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Training
from medfed.models.tasks.tabular import Tabular


def test_the_trees_of_one_site_split_where_its_classes_do(tmp_path):
    rows = [
        {"features": torch.tensor([float(number)]), "target": number // 20, "case": str(number)}
        for number in range(40)
    ]
    network = Network(trees=1, depth=1, bins=16, reveal_sums=True).build(1, 2)
    module = Tabular(classes=("low", "high")).module(network, Training(Adam(), Constant(), 5))
    config = SiteConfig(epochs=5, grows_alone=Rule(min_patients=5), accelerator="cpu")
    module.train_dataloader = lambda: DataLoader(rows, batch_size=16)
    train_alone("north", module, None, config, folder=tmp_path)
    assert network.cursor.tolist() == [4, 1, 0]
    answers = network(torch.tensor([[5.0], [35.0]]))[:, 1]
    assert answers[0] < 0 < answers[1]
