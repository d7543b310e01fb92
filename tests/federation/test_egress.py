"""What may leave a hospital is a declared list; the rest is refused there, written down, and never "
"encoded."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.deployment.policy import Policy, egress_under
from medfed.errors import EgressError, StudyError, UpdateError
from medfed.exchange import DropOut, MemoryExchange
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import CallbackOptions, HubConfig
from medfed.federation.egress import TRAINING, Egress, declared_scores, enforce
from medfed.federation.round import SiteConnection, drop_out, send_update
from medfed.federation.simulation import simulate
from medfed.local_training.scaffold import CONTROL
from medfed.pipeline.factory import egress_of
from medfed.pipeline.small_scores import PatientCounts
from medfed.privacy import NoPrivacy
from medfed.runs.rounds import WITHHELD
from medfed.study.reading import read_study
from medfed.wire import encoding as wire
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import Update
from medfed.wire.weights import Difference, weights_of

WEIGHTS = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
LOCAL = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
LISTED = Egress(scalars=frozenset({"val/dice"}), groups=(CONTROL,), sealed=("masked",))


def update(**changed) -> Update:
    fields = {"delta": Difference(LOCAL, WEIGHTS), "examples": 4, "scalars": {"val/dice": 0.5}, "groups": {}}
    return Update("north", 3, **{**fields, **changed})


@pytest.fixture
def site(tmp_path):
    """What a site sends, its log, and every byte that left."""
    left: list[bytes] = []
    return MemoryExchange("study", on_bytes=left.append), AuditLog(tmp_path / "audit.jsonl"), left


def test_what_is_sent_has_an_entry_with_the_bytes_and_their_digest(site, tmp_path):
    exchange, audit, left = site
    send_update(SiteConnection("north", exchange, egress=LISTED, audit=audit), update(), WEIGHTS)
    (entry,) = entries(tmp_path / "audit.jsonl")
    assert entry["event"] == "sent"
    assert entry["to"] == "hub, in this process"
    assert entry["bytes"] == len(left[0])
    assert entry["sha256"] == hashlib.sha256(left[0]).hexdigest()
    assert (entry["tensors"], entry["values"], entry["scalars"]) == (2, 8, ["val/dice"])


def test_the_entry_is_on_disk_before_anything_leaves(site, tmp_path):
    exchange, _, left = site

    class Full(AuditLog):
        def write(self, event, **fields):
            raise OSError("no space left")

    connection = SiteConnection("north", exchange, egress=LISTED, audit=Full(tmp_path / "full"))
    with pytest.raises(OSError, match="no space left"):
        send_update(connection, update(), WEIGHTS)
    with pytest.raises(OSError, match="no space left"):
        drop_out(SiteConnection("north", exchange, audit=Full(None)), DropOut.DATA)
    assert left == []


UNDECLARED = {
    "a tensor": ({"delta": {**LOCAL, "image": torch.zeros(9)}}, "'image' is not in the global model"),
    "another shape": ({"delta": {**LOCAL, "a.bias": torch.zeros(2000)}}, r"has shape \(2000,\)"),
    "a group": ({"groups": {"images": {"x": torch.zeros(64, 64)}}}, "the group 'images' is not declared"),
    "a tensor in a group": (
        {"groups": {CONTROL: {"x": torch.zeros(4)}}},
        "'x' of group 'control' is not a tensor",
    ),
    "a shape in a group": (
        {"groups": {CONTROL: {"a.bias": torch.zeros(99)}}},
        r"'a\.bias' of group 'control' has shape \(99,\), declared is \(2,\)",
    ),
    "a number": (
        {"scalars": {"val/dice": 0.5, "age of MUSTERMANN": 54.0}},
        "17 characters that are not declared",
    ),
    "no number": ({"scalars": {"val/dice": "MUSTERMANN"}}, "scalar 'val/dice' is a str"),
    "not finite": (
        {"scalars": {"val/dice": float("nan")}},
        "'val/dice' is a float, only finite numbers leave",
    ),
}


@pytest.mark.parametrize("changed, message", UNDECLARED.values(), ids=UNDECLARED.keys())
def test_what_is_not_declared_is_refused_and_written_down(site, tmp_path, changed, message):
    exchange, audit, left = site
    with pytest.raises(UpdateError, match=message):
        send_update(SiteConnection("north", exchange, egress=LISTED, audit=audit), update(**changed), WEIGHTS)
    assert left == []
    (entry,) = entries(tmp_path / "audit.jsonl")
    assert (entry["event"], entry["site"], entry["round"]) == ("withheld", "north", 3)
    assert "MUSTERMANN" not in (tmp_path / "audit.jsonl").read_text()


def test_a_mechanism_that_adds_what_it_does_not_declare_is_refused(site):
    exchange, audit, left = site

    class Chatty(NoPrivacy, tag="chatty", frozen=True):
        sends: ClassVar[tuple[str, ...]] = ("masked",)

        def protect(self, update, weights):
            return Update(update.site, update.round, {}, 4, {}, {"secret": {"x": torch.zeros(3)}})

    with pytest.raises(EgressError, match="the group 'secret' is not declared"):
        send_update(SiteConnection("north", exchange, Chatty(), LISTED, audit=audit), update(), WEIGHTS)
    assert left == []

    class Honest(Chatty, tag="honest", frozen=True):
        sends: ClassVar[tuple[str, ...]] = ("secret",)

    send_update(SiteConnection("north", exchange, Honest(), LISTED, audit=audit), update(), WEIGHTS)
    assert len(left) == 1


ROW = "row/test/federated/dice//sex=F/"


def test_results_leave_over_groups_of_enough_patients_only_and_the_others_are_counted():
    listed = Egress(scalars=frozenset({"val/dice"}), smallest_group=10)
    row = {f"{ROW}value": 0.8, f"{ROW}n": 10.0}
    assert enforce(update(scalars=row), WEIGHTS, listed).scalars == row
    few = {f"row/test/federated/hd95_mm/lesion//{field}": 9.0 for field in ("value", "low", "high", "n")}
    unstated = {"row/test/federated/missed/lesion//value": 9.0}
    others = {**row, "val/dice": 0.5}
    sent = enforce(update(scalars={**others, **few, **unstated}), WEIGHTS, listed).scalars
    assert sent == {**others, WITHHELD: 2.0}
    # A site that has withheld some before adds these.
    counted = Egress(scalars=frozenset({WITHHELD}), smallest_group=10)
    assert enforce(update(scalars={WITHHELD: 3.0, **few}), WEIGHTS, counted).scalars == {WITHHELD: 4.0}
    assert enforce(update(scalars=row), WEIGHTS, Egress(scalars=frozenset())).scalars == {WITHHELD: 1.0}
    with pytest.raises(EgressError, match="has another form than medfed's"):
        enforce(update(scalars={"row/MUSTERMANN": 0.8}), WEIGHTS, listed)


def test_what_is_withheld_is_written_down(site, tmp_path):
    exchange, audit, left = site
    row = {f"{ROW}value": 0.8, f"{ROW}n": 9.0}
    listed = Egress(scalars=frozenset(), smallest_group=10)
    report = Update("north", 3, {}, 0, row)
    send_update(SiteConnection("north", exchange, egress=listed, audit=audit), report, WEIGHTS)
    assert len(left) == 1
    (entry,) = entries(tmp_path / "audit.jsonl")
    assert (entry["event"], entry["scalars"], entry["withheld"]) == ("sent", [WITHHELD], 2)


PATIENT = "val/dice/Meier_Anna_19500102"


class PerPatient(pl.LightningModule):
    """Logs what it declares, a score named after each patient, and names outside `val`."""

    scores = ("val/dice", "accuracy")

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        self.log("train_loss", 0.5)
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, index):
        self.layer(batch[0])  # a validation that uses no layer of the module's measures another model
        self.log_dict(
            {"val/dice": 0.75, "accuracy": 0.5, "val/loss": 0.25, PATIENT: 0.1, "MRN 00123456": 0.2}
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def federate(module, audit=None, **options):
    """Train a module at one site for two rounds; return what the hub gets each round, and every byte sent."""
    left, results, start = [], [], weights_of(module)
    loader = DataLoader(TensorDataset(torch.ones(4, 2)), 2)

    def site(exchange):
        settings = CallbackOptions(audit=audit, **options)
        fit(module, FederatedCallback("north", exchange, options=settings), loader, loader)

    config = HubConfig(2, ("north",), FedAvg())
    simulate(
        {"north": site},
        start,
        config,
        on_bytes=left.append,
        on_round=lambda report: results.extend(one.scalars for one in report.results),
    )
    return results, b"".join(left)


def fit(module, callback, train, val):
    pl.Trainer(
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    ).fit(module, train, val)


def test_a_metric_that_its_module_does_not_declare_stays_and_is_told(tmp_path, caplog):
    results, left = federate(PerPatient(), AuditLog(tmp_path / "audit.jsonl"))
    assert {name: results[-1][name] for name in ("val/dice", "accuracy", "val/loss")} == {
        "val/dice": 0.75,
        "accuracy": 0.5,
        "val/loss": 0.25,
    }
    assert not any("Meier" in name or "MRN" in name for one in results for name in one)
    assert b"Meier" not in left
    assert b"MRN" not in left
    (told,) = [one.getMessage() for one in caplog.records if one.name == "medfed.federation.callback"]
    assert told == (
        "site 'north': 2 logged metrics stay in this hospital, because neither the module nor the study "
        "declares them: 1 under 'val', 1 under other names. List the names that may leave in the module's "
        "`scores`"
    )
    (entry,) = [one for one in entries(tmp_path / "audit.jsonl") if one["event"] == "kept"]
    assert (entry["site"], entry["reason"]) == ("north", told.removeprefix("site 'north': "))


def test_a_study_decides_for_its_module_what_leaves():
    results, _ = federate(PerPatient(), egress=Egress(TRAINING | {"accuracy"}))
    assert {name for name in results[-1] if not name.startswith("train/")} == {"accuracy"}


def test_what_a_module_declares_is_a_list_of_short_names():
    assert declared_scores(PerPatient(), "site 'north'") == {
        "val/dice",
        "val/personal/dice",
        "accuracy",
        "val/personal/accuracy",
    }
    assert declared_scores(object(), "site 'north'") == frozenset()
    for wrong in ("val/dice", ["row/test/m"], [3], ["x" * 81], ["val/\ndice"], [str(n) for n in range(101)]):
        module = PerPatient()
        module.scores = wrong
        with pytest.raises(StudyError, match=r"site 'north': the module's `scores` is not a list"):
            declared_scores(module, "site 'north'")


def test_without_a_study_nothing_undeclared_passes_the_list():
    assert enforce(update(scalars={"val/loss": 0.5, "train/loss": 1.0}), WEIGHTS, Egress()).scalars
    for name in (PATIENT, "val/f1 macro", "patient 7/dice", "privacy/Anna", "val/dice/../../etc"):
        with pytest.raises(EgressError, match="are not declared to leave") as refused:
            enforce(update(scalars={name: 0.5}), WEIGHTS, Egress())
        assert name not in str(refused.value)


def test_a_study_declares_what_its_task_method_and_mechanism_send(tiny):
    study = read_study(
        tiny / "tiny.yaml",
        ["train.local={kind: scaffold}", "rule={kind: scaffold}", "train.optimiser={kind: sgd}"],
    )
    listed = egress_of(study, smallest_group=study.evaluation.smallest_group)
    assert listed.groups == ("control",)
    assert "val/dice" in (listed.scalars or ())
    assert (listed.scalars or frozenset()) >= TRAINING


@pytest.mark.parametrize(
    "policy, validated, kept",
    [
        (None, 1, True),
        (Policy(), 10, True),
        (Policy(), 9, False),
        (Policy(smallest_group=3), 9, True),
        (Policy(rows="none"), 99, False),
    ],
)
def test_scores_over_few_patients_stay_where_the_hospital_says_so(tiny, policy, validated, kept):
    study = read_study(tiny / "tiny.yaml")
    egress = (
        egress_of(study, smallest_group=study.evaluation.smallest_group)
        if policy is None
        else egress_under(study, policy, PatientCounts(20, validated))
    )
    sent = enforce(update(scalars={"val/dice": 0.5, "train/steps": 3.0}), WEIGHTS, egress).scalars
    assert ("val/dice" in sent) == kept
    assert "train/steps" in sent


def scored(validated: int, **counts: float) -> set[str]:
    """What of a round's scores leaves a hospital with so many validation patients, and groups of five."""
    names = ("both_empty", "false_positives", "missed")
    scores = {f"val/{name}": counts.get(name, 0.0) for name in names} | {"val/dice": 0.07, "val/loss": 0.4}
    scores |= {f"val/dice/{name}": 0.1 for name in counts if name in ("liver", "lesion")}
    allowed = Egress(scalars=frozenset(scores), smallest_group=5, validated=validated)
    sent = enforce(update(scalars=scores), WEIGHTS, allowed).scalars
    return {name.removeprefix("val/") for name in sent}


COUNTS = {"both_empty", "false_positives", "missed"}


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({}, {"dice", "loss", *COUNTS}),
        ({"missed": 7.0}, {"dice", "loss", *COUNTS}),  # a mean over the five others
        ({"missed": 11.0}, {"dice", "loss"}),  # twelve times the mean is the twelfth patient's Dice
        ({"both_empty": 10.0}, {"loss"}),  # a mean over two
        ({"both_empty": 10.0, "liver": 1, "lesion": 1}, {"dice", "loss", "dice/liver", "dice/lesion"}),
    ],
)  # fmt: skip
def test_a_rounds_dice_beside_counts_of_empty_masks_is_of_enough_patients(counts, kept):
    assert scored(12, **counts) == kept


def test_a_reason_to_stop_has_an_entry(site, tmp_path):
    exchange, audit, left = site
    drop_out(SiteConnection("north", exchange, audit=audit), DropOut.PRIVACY, "trains on 12 examples")
    (entry,) = entries(tmp_path / "audit.jsonl")
    assert (entry["event"], entry["bytes"]) == ("dropped out", len(left[0]))
    # The number of cases is in the hospital's own log, and not in what left.
    assert entry["detail"] == "trains on 12 examples"
    assert left == [b"its privacy mechanism cannot keep its promise here"]


def test_measured_is_what_is_encoded():
    size, digest = wire.measure_update(update(), "study")
    data = wire.encode_update(update(), "study")
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
