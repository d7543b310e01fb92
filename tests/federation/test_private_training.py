"""DP-SGD by hand: gradients a patient, clipped together, noised once, counted, and never repeated."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import LedgerError, PrivacyError
from medfed.exchange import MemoryExchange
from medfed.federation import private_training
from medfed.federation.callback import FederatedCallback
from medfed.federation.checkpoints import load_latest_checkpoint
from medfed.federation.config import SiteConfig
from medfed.federation.private_training import PoissonPatientSampler, PrivateData, PrivateTraining
from medfed.federation.site import ChargedPatients, SiteRun, train_site
from medfed.privacy import _noise as noise
from medfed.privacy.accounting.accountant import MechanismSteps, epsilon
from medfed.privacy.accounting.ledger import BudgetTracker, Ledger, data_set
from medfed.privacy.client_dp import CLIP, Adaptive, ClientDP
from medfed.privacy.dp_sgd import DPSGD
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.weights import digest, weights_of

# Items 0 to 5 of three patients: two visits, one, three.
ITEMS = [(0, 1), (2,), (3, 4, 5)]
PATIENTS = data_set(["anna", "bert", "cora"], b"a secret of 16 b")


class Line(pl.LightningModule):
    """The loss is the mean of w . x, so a patient's gradient is the mean of their rows."""

    def __init__(self, rate: float = 1.0, optimiser=torch.optim.SGD) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.rate, self.optimiser = rate, optimiser

    def training_step(self, batch, index):
        return (batch[0] @ self.w).mean()

    def validation_step(self, batch, index):
        self.log("val/loss", (batch[0] @ self.w).mean())

    def configure_optimizers(self):
        return self.optimiser(self.parameters(), lr=self.rate)


class Logged(Line):
    """The same with a loss of its own, which lets patients go through together."""

    def loss(self, batch):
        return (batch[0] @ self.w).mean()


class Rows(pl.LightningDataModule):
    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = TensorDataset(rows)

    def train_dataloader(self):
        return DataLoader(self.rows, 2, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, 3)


# Mean rows of the patients: (3, 4) of length 5, (0.3, 0.4) of length 0.5, (-1, 0) of length 1.
TABLE = torch.tensor([[2.0, 4.0], [4.0, 4.0], [0.3, 0.4], [-2.0, 1.0], [-1.0, -2.0], [0.0, 1.0]])


def spending(folder, resumed: bool = False, ceiling: float | None = None) -> BudgetTracker:
    return BudgetTracker(
        Ledger(folder, ceiling), "study", PATIENTS, delta=1e-5, accountant="rdp", resumed=resumed
    )


def fit(folder, module, *, privacy=None, expected=3, epochs=1, rows=TABLE, items=ITEMS, **settings):
    privacy = privacy or DPSGD(accountant="rdp")
    data = PrivateData(Rows(rows), items, expected, privacy.augmentations)
    private = PrivateTraining("north", privacy, data, spending(folder))
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[private], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return private


@pytest.fixture
def no_noise(monkeypatch):
    asked = []

    def silent(shape, deviation):
        asked.append(deviation)
        return torch.zeros(tuple(shape), dtype=torch.float64)

    monkeypatch.setattr(private_training.noise, "gaussian", silent)
    return asked


@pytest.mark.parametrize("module", [Line, Logged])
def test_one_step_by_hand(tmp_path, no_noise, module):
    # Clip 1: (3, 4) / 5 + (0.3, 0.4) + (-1, 0) = (-0.1, 1.2), over 3 patients; w is minus that.
    model = module()
    private = fit(tmp_path, model, privacy=DPSGD(clip=1.0, accountant="rdp"))
    torch.testing.assert_close(model.w.data, torch.tensor([0.1, -1.2]) / 3, rtol=2e-5, atol=1e-5)
    # The noise that was drawn: once, of deviation noise multiplier times clip.
    assert no_noise == [pytest.approx(private.noise_multiplier * 1.0)]


def test_sums_over_groups_of_patients_are_float64_too(tmp_path, monkeypatch):
    summed = []

    def watched(values, *_):
        summed.append(values.clone())
        return values

    monkeypatch.setattr(noise, "add_gaussian", watched)
    rows = torch.tensor([[0.5, 0.0], [2.0**-30, 0.0]])
    for module, at_once in ((Line, 1), (Logged, 1)):
        privacy = DPSGD(accountant="rdp", at_once=at_once)
        fit(tmp_path, module(), rows=rows, items=[(0,), (1,)], expected=2, privacy=privacy)
    assert [total[0].tolist() for total in summed] == [0.5 + 2.0**-30] * 2


def test_the_noise_has_the_deviation_that_the_accountant_counts(tmp_path):
    # No gradient at all: what moves w is the noise. w after one step is -noise / 3, of deviation z / 3 each.
    class Wide(Line):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(20_000))

        def training_step(self, batch, index):
            return (0 * self.w).sum()

        validation_step = None

    model = Wide()
    private = fit(tmp_path, model, privacy=DPSGD(epsilon=2.0, clip=0.5, accountant="rdp"))
    assert private.noise_multiplier > 1
    expected = private.noise_multiplier * 0.5 / 3
    assert float(model.w.data.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * 20_000))
    assert abs(float(model.w.data.mean())) < 5 * expected / math.sqrt(20_000)


def test_the_target_is_met_over_all_steps_and_the_noise_differs_each_time(tmp_path):
    moved = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        torch.manual_seed(0)
        model = Line()
        private = fit(tmp_path / run, model, epochs=4, expected=1, privacy=DPSGD(epsilon=3, accountant="rdp"))
        moved.append(model.w.data.clone())
        # One of three patients a step: a rate of 1 / 3, three steps an epoch, four epochs.
        private.commit_round(1)
        assert private.state_dict()["steps"] == 12
        assert private.state_dict()["sample_rate"] == pytest.approx(1 / 3)
        spent = epsilon([MechanismSteps(private.noise_multiplier, 1 / 3, 12)], 1e-5, "rdp")
        assert private.epsilon == pytest.approx(spent)
        assert 2.98 < spent <= 3
    assert not torch.equal(*moved)


def test_a_step_without_any_patient_is_noise_alone_and_counts(tmp_path, no_noise, monkeypatch):
    monkeypatch.setattr(noise, "poisson_sample", lambda count, chance: [])
    model = Line()
    private = fit(tmp_path, model, expected=1)
    assert float(model.w.data.abs().sum()) == 0.0
    assert len(no_noise) == 3
    private.commit_round(1)
    assert private.state_dict()["steps"] == 3


def test_sampling_is_of_patients_and_by_the_operating_system(monkeypatch):
    sampler = PoissonPatientSampler(10, 4)
    assert (sampler.rate, sampler.steps, len(sampler)) == (0.4, 2, 2)
    assert PoissonPatientSampler(3, 8).rate == 1.0
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append([list(PoissonPatientSampler(40, 20)) for _ in range(3)])
    assert drawn[0] != drawn[1]


def test_each_patient_brings_all_their_items():
    loader = PrivateData(Rows(TABLE), ITEMS, 3).train_dataloader()
    (batch,) = list(loader)
    assert [[len(copy[0]) for copy in patient] for patient in batch["patients"]] == [[2], [1], [3]]


class Drawn(TensorDataset):
    """Row i plus a number that follows from the seed alone, so that copies of a patient differ."""

    seed = 0

    def set_random_state(self, seed):
        self.seed = seed

    def __getitem__(self, item):
        return (
            super().__getitem__(item)[0]
            + torch.rand(2, generator=torch.Generator().manual_seed(self.seed % 2**63)),
        )


class DrawnRows(Rows):
    def __init__(self, rows):
        super().__init__(rows)
        self.rows = Drawn(rows)


def test_each_copy_of_a_patient_has_all_their_items_and_draws_of_its_own():
    data = PrivateData(DrawnRows(TABLE), ITEMS, 3, copies=4)
    (first,), (second,) = list(data.train_dataloader()), list(data.train_dataloader())
    moved = set()
    for patient, items in zip(first["patients"], ITEMS, strict=True):
        assert len(patient) == 4
        added = torch.stack([copy[0] - TABLE[list(items)] for copy in patient])
        # Within a copy every item has the same draw, by the dataset above; no two copies have.
        torch.testing.assert_close(added, added[:, :1].expand_as(added))
        assert len({round(float(value), 4) for value in added[:, 0, 0]}) == 4
        moved |= {round(float(value), 4) for value in added[:, 0, 0]}
    again = second["patients"][1][0][0] - TABLE[[2]]
    assert round(float(again[0, 0]), 4) not in moved  # the next loader's seed is a new one


@pytest.mark.parametrize("module", [Line, Logged])
def test_several_copies_that_are_equal_train_as_one(tmp_path, no_noise, module):
    weights = []
    for copies in (1, 4):
        model = module()
        (tmp_path / str(copies)).mkdir()
        fit(tmp_path / str(copies), model, privacy=DPSGD(accountant="rdp", augmentations=copies), epochs=3)
        weights.append(model.w.data.clone())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)
    assert float(weights[0].norm()) > 0


def test_copies_cost_no_epsilon_and_no_more_noise(tmp_path, no_noise):
    spent = []
    for copies in (1, 5):
        (tmp_path / str(copies)).mkdir()
        privacy = DPSGD(epsilon=3, clip=0.5, accountant="rdp", augmentations=copies)
        private = fit(tmp_path / str(copies), Line(), privacy=privacy, expected=1, epochs=2)
        private.commit_round(1)
        spent.append((private.epsilon, private.noise_multiplier, private.state_dict()["steps"]))
    assert spent[0] == spent[1]
    assert no_noise == [pytest.approx(spent[0][1] * 0.5)] * 2 * 6


def test_an_item_of_two_patients_is_refused():
    with pytest.raises(PrivacyError, match="an item belongs to two patients"):
        PrivateData(Rows(TABLE), [(0, 1), (1, 2)], 1)
    with pytest.raises(PrivacyError, match="each with at least one training item"):
        PrivateData(Rows(TABLE), [(0, 1), ()], 1)


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.SGD])
def test_bfloat16_works(tmp_path, optimiser):
    model = Logged(optimiser=optimiser)
    fit(tmp_path, model, precision="bf16-mixed")
    assert bool(torch.isfinite(model.w).all())


class Half(Line):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))


class BatchNormed(Line):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, 2), nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)
        )


class ByHand(Line):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Remembers(Line):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def training_step(self, batch, index):
        self.seen += batch[0].detach().sum(0)
        return super().training_step(batch, index)


@pytest.mark.parametrize(
    "module, settings, words",
    [
        (
            BatchNormed,
            {},
            r"body.1 \(BatchNorm1d\), body.2 \(InstanceNorm1d\); build the network with group norm",
        ),
        (ByHand, {}, "ByHand uses manual optimisation"),
        (Remembers, {}, "training changes seen without a gradient"),
        (Line, {"precision": "bf16-true"}, r"precision is bf16-true.*; use 32 or bf16-mixed"),
        (Line, {"precision": "16-true"}, "precision is 16-true"),
        (Half, {}, "'w' is torch.bfloat16, expected 32 or 64 bits"),
        (Line, {"accumulate_grad_batches": 2}, "accumulate_grad_batches is 2; use 1 and a larger batch"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tmp_path, module, settings, words):
    with pytest.raises(PrivacyError, match=words):
        fit(tmp_path, module(), **settings)


def test_a_delta_of_one_over_the_patients_is_refused(tmp_path):
    with pytest.raises(
        PrivacyError, match=r"delta is 0.4 for 3 training patients; it must be well below 3.3e-01"
    ):
        fit(tmp_path, Line(), privacy=DPSGD(delta=0.4, accountant="rdp"))


def test_batches_that_are_not_drawn_by_patient_are_refused(tmp_path):
    private = PrivateTraining("north", DPSGD(), PrivateData(Rows(TABLE), ITEMS, 2), spending(tmp_path))
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[private],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    with pytest.raises(PrivacyError, match="the training batches are not drawn by patient"):
        trainer.fit(Line(), datamodule=Rows(TABLE))


def test_the_module_is_itself_again_after_training(tmp_path):
    model = Line()
    fit(tmp_path, model)
    assert "training_step" not in vars(model)
    assert "backward" not in vars(model)


def test_over_the_ceiling_no_step_is_taken(tmp_path, no_noise):
    model = Line()
    data = PrivateData(Rows(TABLE), ITEMS, 3)
    private = PrivateTraining(
        "north", DPSGD(epsilon=4, accountant="rdp"), data, spending(tmp_path, ceiling=2)
    )
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[private],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    with pytest.raises(PrivacyError, match=r"site 'north': .*the hospital's ceiling is 2 over all"):
        trainer.fit(model, datamodule=data)
    assert no_noise == []
    assert float(model.w.data.abs().sum()) == 0.0


# -------------------------------------------------------------------------------------------- in a federation

ROUNDS = 3


class DiesInside(pl.Callback):
    """Ends south in the middle of its first round of two epochs, after the first."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")


class Dies(pl.Callback):
    """Ends south when a round's update has been sent and nothing of the next is on its disk."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.state.fn == "fit" and trainer.current_epoch == 1:
            raise RuntimeError("killed")


def federation(
    folder, *, privacy=None, resume=False, dies=False, seen=lambda data: None, local_epochs=1, **settings
):
    reports = []

    def site(name):
        def work(exchange):
            train_site(
                name,
                Logged(),
                Rows(TABLE),
                exchange,
                SiteConfig(
                    ROUNDS * local_epochs,
                    local_epochs,
                    batch=2,
                    privacy=privacy or DPSGD(epsilon=4, accountant="rdp"),
                    accelerator="cpu",
                    **settings,
                ),
                SiteRun(
                    folder / name,
                    resume,
                    examples=6,
                    patients=ChargedPatients("study", PATIENTS, ITEMS),
                    callbacks=[dies()] if dies and name == "south" else [],
                    checkpoint_s=0.0,
                ),
            )

        return work

    for name in ("north", "south"):
        (folder / name).mkdir(exist_ok=True)
    final = simulated(
        {name: site(name) for name in ("north", "south")},
        weights_of(Logged()),
        rule=FedAvg(),
        rounds=ROUNDS,
        privacy=privacy or DPSGD(epsilon=4, accountant="rdp"),
        minimum=2,
        folder=folder / "hub",
        on_bytes=seen,
        on_round=reports.append,
    )
    return final, reports


def test_epsilon_grows_round_by_round_to_the_target_and_no_exact_score_leaves(tmp_path):
    _, reports = federation(tmp_path)
    reported = [report.results[0].scalars for report in reports]
    spent = [scalars["privacy/epsilon"] for scalars in reported[:ROUNDS]]
    assert spent == sorted(spent)
    assert 3.98 < spent[-1] <= 4
    for scalars in reported:
        assert set(scalars) <= {"privacy/epsilon", "train/steps", "train/rate"}
    assert Ledger(tmp_path / "north").spent(PATIENTS) == pytest.approx(spent[-1], rel=0.2)
    (account,) = Ledger(tmp_path / "north").accounts("study")
    assert account.closed


def test_scores_leave_where_the_study_says_so(tmp_path):
    _, reports = federation(tmp_path, privacy=DPSGD(epsilon=4, accountant="rdp", scores="send"))
    assert "val/loss" in reports[1].results[0].scalars
    assert "train/loss" not in reports[1].results[0].scalars


def test_a_resumed_run_counts_the_round_it_repeats_draws_new_noise_and_keeps_the_target(tmp_path):
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        federation(tmp_path, dies=Dies)
    before = Ledger(tmp_path / "south").accounts("study")[-1]
    # Two rounds left south; its checkpoint is of the first. The second is trained again, and
    # both releases count.
    steps = sum(charge.steps for charge in before.spent)
    federation(tmp_path, resume=True)
    after = Ledger(tmp_path / "south").accounts("study")[-1]
    assert after.id == before.id
    assert after.spent[: len(before.spent)] == before.spent
    assert sum(charge.steps for charge in after.spent) == steps + 2 * 2 == 8
    assert after.spent[-1].noise_multiplier > before.spent[0].noise_multiplier
    assert epsilon(after.spent, 1e-5, "rdp") <= 4


def test_inside_a_round_every_step_that_leaves_is_charged_and_each_once(tmp_path):
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        federation(tmp_path, dies=DiesInside, local_epochs=2)
    (before,) = Ledger(tmp_path / "south").accounts("study")
    assert before.spent == ()
    federation(tmp_path, resume=True, local_epochs=2)
    (after,) = Ledger(tmp_path / "south").accounts("study")
    # Two steps in each of 3 x 2 epochs; those before the kill left with the first update.
    assert sum(charge.steps for charge in after.spent) == 2 * 2 * ROUNDS
    assert after.id == before.id
    assert after.reserved is None
    assert 3.95 < epsilon(after.spent, 1e-5, "rdp") <= 4
    assert after.spent[0].noise_multiplier == before.reserved.noise_multiplier


def test_a_site_inside_a_round_reserves_that_round_too(tmp_path):
    privacy = ClientDP(clip=0.5, noise_multiplier=2.0, accountant="rdp")
    reserved = []
    real = Ledger.reserve

    def noted(self, study, data, plan, account=""):
        reserved.append(plan.steps)
        return real(self, study, data, plan, account)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "reserve", noted)
        with pytest.raises(medfed.QuorumError, match="south: absent"):
            federation(tmp_path, privacy=privacy, dies=DiesInside, local_epochs=2)
        assert reserved == [ROUNDS, ROUNDS]
        reserved.clear()
        federation(tmp_path, privacy=privacy, resume=True, local_epochs=2)
    assert reserved[-1] == ROUNDS
    (account,) = Ledger(tmp_path / "south").accounts("study")
    assert sum(charge.steps for charge in account.spent) == ROUNDS


def test_each_rounds_clip_reaches_the_sites_before_and_after_a_resume(tmp_path):
    adaptive = Adaptive(count_noise=0.03, rate=1.0)
    privacy = ClientDP(clip=0.05, noise_multiplier=0.05, accountant="rdp", adaptive=adaptive)
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        federation(tmp_path, privacy=privacy, dies=Dies)
    _, reports = federation(tmp_path, privacy=privacy, resume=True)
    merged = [[one.status for one in report.results] for report in reports]
    assert [len(one) for one in merged] == [2] * len(merged)
    assert {status for one in merged[:-1] for status in one} == {"merged"}
    state = load_latest_checkpoint(tmp_path / "hub")[1]
    # Both hospitals' updates were too long in each of three rounds: 0.05 exp(1 / 2) each time.
    assert float(state[CLIP]["clip"]) == pytest.approx(0.05 * math.exp(1.5), rel=0.1)


def test_no_run_repeats(tmp_path):
    weights = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        weights.append(digest(federation(tmp_path / name)[0].weights))
    assert weights[0] != weights[1]


def test_training_that_was_not_private_sends_nothing(tmp_path):
    sent = []

    def work(exchange):
        federated = FederatedCallback("north", exchange, 1, privacy=DPSGD())
        pl.Trainer(
            max_epochs=1,
            callbacks=[federated],
            logger=False,
            enable_checkpointing=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Line(), datamodule=Rows(TABLE))

    with pytest.raises(
        medfed.QuorumError, match="the study asks for dp_sgd and this training was not private"
    ):
        simulated({"north": work}, weights_of(Line()), rule=FedAvg(), rounds=1, on_bytes=sent.append)
    assert sent
    assert not any(b'"local/w"' in data or b'"delta/w"' in data for data in sent)


def test_the_last_checkpoint_says_what_was_spent(tmp_path):
    federation(tmp_path)
    saved = torch.load(tmp_path / "north" / "last.ckpt", weights_only=False)
    assert saved["callbacks"]["PrivateTraining"]["steps"] == 2 * ROUNDS
    assert saved["callbacks"]["PrivateTraining"]["epsilon"] <= 4


def test_a_ledger_that_was_changed_stops_the_site_and_is_in_its_audit_log(tmp_path):
    Ledger(tmp_path).reserve("study", PATIENTS, MechanismSteps(1.0, 1.0, 3))
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":3', b'"steps":1'))
    audit = AuditLog(tmp_path / "audit.jsonl")
    patients = ChargedPatients("study", PATIENTS, ITEMS)
    run = SiteRun(tmp_path, examples=6, patients=patients, audit=audit)
    config = SiteConfig(1, 1, batch=2, privacy=DPSGD(epsilon=4, accountant="rdp"))
    with pytest.raises(LedgerError, match="privacy ledger, line") as refused:
        train_site("north", Logged(), Rows(TABLE), MemoryExchange(""), config, run)
    (entry,) = entries(tmp_path / "audit.jsonl")
    assert (entry["event"], entry["site"]) == ("ledger refused", "north")
    assert entry["reason"] == str(refused.value)
