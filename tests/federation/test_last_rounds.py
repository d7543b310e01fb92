"""Sites that train on validation cases in their last rounds: as before until then, and alike after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from simulated import simulated
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Table
from medfed.errors import StudyError
from medfed.federation.config import SiteConfig
from medfed.federation.last_rounds import LastRoundsOnAll, examples_in, last_rounds, train_on_all
from medfed.federation.site import SiteRun, train_alone, train_site
from medfed.wire.weights import weights_of

ROUNDS, EPOCHS, ON_ALL_FROM = 3, 2, 2
# Training cases 0 to 4, validation cases 5 to 7.
TRAINING, ALL = set(range(5)), set(range(8))


class Net(pl.LightningModule):
    """A line through the origin, whose steps depend on the order of cases; it notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch, index):
        x = batch["features"][:, 0].double()
        self.seen.setdefault(self.trainer.current_epoch, []).extend(int(one) for one in x)
        return ((self.w * x - 1) ** 2).mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self.w.detach().sum(), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Dies(pl.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise RuntimeError("killed")


def table(folder, workers: int = 0, **options) -> SiteDataModule:
    path = folder / "a.csv"
    splits = ["train"] * 5 + ["val"] * 3
    path.write_text("x,y,split\n" + "".join(f"{x},{x % 2},{split}\n" for x, split in enumerate(splits)))
    settings = Table(features=("x",), target="y", standardise="none", workers=workers)
    options = {"batch": 2, "on_all": True, **options}
    return SiteDataModule.open(path, settings, "table", site_secret=b"k", seed=1, **options)


CONFIG = SiteConfig(ROUNDS * EPOCHS, EPOCHS, seed=3, accelerator="cpu", on_all_from=ON_ALL_FROM)


def run(folder, *, dies: int | None = None, resume: bool = False, reports=None, config=CONFIG, **data):
    folder.mkdir(exist_ok=True)
    nets: dict[str, Net] = {}

    def site(name):
        def work(exchange):
            nets[name], cases = Net(), table(folder, **data)
            callbacks = [Dies(dies)] if dies is not None and name == "south" else []
            own = SiteRun(
                folder / name,
                resume,
                callbacks=callbacks,
                examples=cases.examples,
                examples_on_all=cases.examples_on_all,
                checkpoint_s=0.0,
            )
            train_site(name, nets[name], cases, exchange, config, own)

        return work

    final = simulated(
        {name: site(name) for name in ("north", "south")},
        weights_of(Net()),
        rule=FedAvg(),
        rounds=ROUNDS,
        minimum=2,
        folder=folder / "hub",
        on_all_from=config.on_all_from,
        on_round=(lambda report: None) if reports is None else reports.append,
    )
    return final.weights["w"].item(), nets


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    reports: list = []
    return (*run(tmp_path_factory.mktemp("whole"), reports=reports), reports)


def test_training_cases_alone_until_the_last_rounds_which_draw_from_all(undisturbed):
    _, nets, _ = undisturbed
    for net in nets.values():
        epochs = [net.seen[epoch] for epoch in range(ROUNDS * EPOCHS)]
        assert [len(one) for one in epochs] == [5] * 6, "as many steps as before"
        assert [set(one) for one in epochs[:2]] == [TRAINING] * 2
        # Four epochs of 5 are 20 cases: two passes of 8, and 4 of a third.
        drawn = [case for epoch in epochs[2:] for case in epoch]
        assert [set(drawn[:8]), set(drawn[8:16])] == [ALL] * 2
        assert len(set(drawn[16:])) == 4


def test_scores_end_with_the_model_of_the_round_before_and_examples_count_all(undisturbed):
    *_, reports = undisturbed
    found = {
        report.round: [(one.examples, "val/loss" in one.scalars) for one in report.results]
        for report in reports
    }
    # The update of round 2 brings the scores of round 1's model, which no validation case has trained.
    assert found == {1: [(5, True)] * 2, 2: [(8, True)] * 2, 3: [(8, False)] * 2, 4: [(0, False)] * 2}


def test_until_then_it_is_the_study_without_the_key(tmp_path, undisturbed):
    *_, reports = undisturbed
    plain: list = []
    run(tmp_path, reports=plain, config=replace(CONFIG, on_all_from=None), on_all=False)
    told = [[(one.scalars["train/loss"], one.scalars.get("val/loss")) for one in report.results]
            for report in plain[:2]]  # fmt: skip
    same = [[(one.scalars["train/loss"], one.scalars.get("val/loss")) for one in report.results]
            for report in reports[:2]]  # fmt: skip
    assert told[0] == same[0]
    assert [score for _, score in told[1]] == [score for _, score in same[1]], "of the first round's model"
    assert told[1] != same[1], "the second round trains on all"


@pytest.mark.parametrize("dies", range(6))
def test_a_killed_site_goes_on_with_the_same_cases_and_bits(tmp_path, undisturbed, dies):
    whole, nets, _ = undisturbed
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        run(tmp_path, dies=dies)
    again, resumed = run(tmp_path, resume=True)
    assert again == whole
    # A site goes on after its last local epoch; south's are those from the one in which it was killed.
    assert resumed["south"].seen == {e: nets["south"].seen[e] for e in range(dies, ROUNDS * EPOCHS)}


def test_a_worker_process_that_draws_ahead_draws_the_same_cases(tmp_path, undisturbed):
    again, _ = run(tmp_path, workers=1)
    assert again == undisturbed[0]


def test_a_site_alone_does_the_same_by_its_epochs(tmp_path):
    net = Net()
    train_alone("north", net, table(tmp_path), CONFIG, folder=tmp_path)
    assert [set(net.seen[epoch]) for epoch in (0, 1)] == [TRAINING] * 2
    assert set(net.seen[2]) | set(net.seen[3]) == ALL


def test_rounds_that_a_site_missed_count(tmp_path):
    # Asked in rounds 1 and 3 only: its second pair of epochs is round 3, and draws passes from epoch 2 on.
    net, rounds = Net(), iter([1, 1, 3, 3])
    callback = LastRoundsOnAll("north", ON_ALL_FROM, EPOCHS, lambda trainer: next(rounds))
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data = table(tmp_path)
    trainer.fit(net, datamodule=data)
    sampler = trainer.train_dataloader.sampler
    sampler.train_on_all(2)
    assert net.seen[2] == list(sampler), "epoch 2 of those on all cases, not 0"


def test_a_loader_that_medfed_did_not_make_is_refused():
    class Trainer:
        train_dataloader = DataLoader(TensorDataset(torch.zeros(2)), 1)

    with pytest.raises(StudyError, match="site 'north': the study's last rounds train on validation cases"):
        train_on_all(Trainer(), "north", 0)


def test_a_weight_at_most_doubles_and_needs_a_number_that_is_given():
    some = examples_in(3, 10, 12)
    assert [some(round) for round in (1, 2, 3, 4)] == [10, 10, 12, 12]
    many = examples_in(3, 10, 45)
    assert [many(2), many(3)] == [10, 20]
    assert examples_in(None, 10, 12) is examples_in(3, None, 12) is examples_in(3, 10, None) is None
    assert last_rounds("north", SiteConfig(4)) == []
