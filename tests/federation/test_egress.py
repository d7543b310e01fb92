"""What may leave a hospital is a declared list; the rest is refused there, written down, and never "
"encoded."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import pytest
import torch

from medfed.deployment.policy import Policy, egress_under
from medfed.errors import EgressError, UpdateError
from medfed.exchange import DropOut, MemoryExchange
from medfed.federation.egress import TRAINING, Egress, enforce
from medfed.federation.round import SiteConnection, drop_out, send_update
from medfed.local_training.scaffold import CONTROL
from medfed.pipeline.factory import egress_of
from medfed.privacy import NoPrivacy
from medfed.study.reading import read_study
from medfed.wire import encoding as wire
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import Update
from medfed.wire.weights import Difference

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

    with pytest.raises(OSError, match="no space left"):
        send_update(SiteConnection("north", exchange, egress=LISTED, audit=Full(None)), update(), WEIGHTS)
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


def test_results_leave_over_groups_of_enough_patients_only():
    listed = Egress(scalars=frozenset(), smallest_group=10)
    row = {f"{ROW}value": 0.8, f"{ROW}n": 10.0}
    assert enforce(update(scalars=row), WEIGHTS, listed).scalars == row
    with pytest.raises(
        EgressError, match="a result is over 9 patients, and this hospital sends none over fewer"
    ):
        enforce(update(scalars={**row, f"{ROW}n": 9.0}), WEIGHTS, listed)
    with pytest.raises(EgressError, match="a result is over 0 patients"):
        enforce(update(scalars={f"{ROW}value": 0.8}), WEIGHTS, listed)
    with pytest.raises(EgressError, match="has another form than medfed's"):
        enforce(update(scalars={"row/MUSTERMANN": 0.8}), WEIGHTS, listed)
    with pytest.raises(EgressError, match=r"holds 2 results of an evaluation, and this hospital sends none"):
        enforce(update(scalars=row), WEIGHTS, Egress(scalars=frozenset()))


def test_a_module_of_ones_own_may_send_plain_numbers_only():
    assert enforce(update(scalars={"val/f1 macro": 0.5, "train/loss": 1.0}), WEIGHTS, Egress()).scalars
    with pytest.raises(EgressError, match="are not declared to leave"):
        enforce(update(scalars={"patient 7/dice": 0.5}), WEIGHTS, Egress())
    many = {f"val/{number}": 0.5 for number in range(101)}
    with pytest.raises(EgressError, match="101 numbers besides the weights, at most 100"):
        enforce(update(scalars=many), WEIGHTS, Egress())


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
        else egress_under(study, policy, validated)
    )
    sent = enforce(update(scalars={"val/dice": 0.5, "train/steps": 3.0}), WEIGHTS, egress).scalars
    assert ("val/dice" in sent) == kept
    assert "train/steps" in sent


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
