"""What settles keys by messages comes out alike in one process, over a folder and at a broker."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from answering import SITES, STUDY, answer, model
from broker_enrolment import Enrolment
from simulated import simulated

from medfed.aggregation.fedavg import FedAvg
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.privacy import Privacy
from medfed.privacy.distributed_dp import DistributedDP
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog, verify
from medfed.wire.messages import SiteChannel
from medfed.wire.update import GlobalModel
from medfed.wire.weights import digest

ROUNDS = 2
PATIENCE_S = 60

# As in test_ckks.py, for each of two runs.
CLOSE = 2e-5


class Place:
    """Hub and sites with certificates, each with its own exchange, over a folder or a local broker."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.enrolment = Enrolment(folder, SITES)
        if kind == "nats":
            self.enrolment.start()
        self.ends: dict[str, BaseException | None] = {}

    def record(self, party: str) -> Folder | Nats:
        credentials = str(self.enrolment.credentials(party))
        if self.kind == "nats":
            return Nats(credentials=credentials, urls=[self.enrolment.url])
        return Folder(url=str(self.folder / "share"), credentials=credentials, poll_s=0.02)

    def site(self, name: str, privacy: Privacy) -> None:
        side = self.record(name).open_site(STUDY, name, self.folder / name)
        try:
            answer(side, privacy, name, AuditLog(self.folder / f"{name}.jsonl"))
            self.ends[name] = None
        except BaseException as error:
            self.ends[name] = error
        finally:
            side.close()

    def run(self, privacy: Privacy) -> GlobalModel:
        """Return the hub's final model, once every site has ended."""
        hub = self.record("hub").open_hub(STUDY, self.folder / "hub")
        plan = HubConfig(ROUNDS, SITES, FedAvg(), privacy, minimum=3, study_digest=STUDY)
        threads = [threading.Thread(target=self.site, args=(name, privacy), daemon=True) for name in SITES]
        try:
            for thread in threads:
                thread.start()
            final = run_hub(plan, hub, model(), folder=self.folder / "models")
        finally:
            for thread in threads:
                thread.join(PATIENCE_S)
            hub.close()
        assert self.ends == dict.fromkeys(SITES)
        return final


@pytest.fixture(params=["folder", "nats"])
def place(request, tmp_path):
    opened = Place(tmp_path, request.param)
    yield opened
    opened.enrolment.end()


def in_one_process(privacy: Privacy) -> GlobalModel:
    sites = {name: lambda exchange, name=name: answer(exchange, privacy, name) for name in SITES}
    return simulated(
        sites, model(), rule=FedAvg(), rounds=ROUNDS, privacy=privacy, minimum=3, study_digest=STUDY
    )


@pytest.mark.slow
def test_what_is_encrypted_opens_at_a_site_to_the_model_of_one_process(place):
    pytest.importorskip("tenseal")
    from medfed.privacy.ckks import SUM, Ckks

    privacy = Ckks(layers=["a"])
    final = place.run(privacy)
    one = in_one_process(privacy)
    # The hub has the sum in the dark, and the untrained numbers in its place.
    assert torch.equal(final.weights["a"], model()["a"])
    assert SUM in final.groups
    side = place.record("north").open_site(STUDY, "north", place.folder / "north")
    opened = privacy.decrypt(final, SiteChannel(side, "north", final.round, parties=SITES))
    side.close()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(opened.weights[name], tensor, rtol=0, atol=CLOSE)
        assert not torch.equal(tensor, model()[name])
    keys = [
        path
        for name in SITES
        for path in (place.folder / name).rglob("ckks-*.secret")
        if "box" not in path.name
    ]
    assert len(keys) == len(SITES)
    assert len({path.read_bytes() for path in keys}) == 1
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys)
    assert not list((place.folder / "hub").rglob("ckks-*.secret"))
    for name in SITES:
        assert verify(place.folder / f"{name}.jsonl").lines > ROUNDS


@pytest.mark.slow
def test_a_secure_sum_is_that_of_one_process_bit_for_bit(place):
    privacy = SecureSum(patience_s=20)
    assert digest(place.run(privacy).weights) == digest(in_one_process(privacy).weights)


@pytest.mark.slow
def test_noise_added_by_the_sites_crosses_as_well(place):
    # So little of it, under so wide a clip, that the model is that of no noise but for it.
    quiet = DistributedDP(noise_multiplier=1e-5, clip=1000.0, bits=64)
    final = place.run(quiet)
    local = in_one_process(quiet)
    for name, tensor in local.weights.items():
        # Each round's mean has noise of at most 12.2 * 0.01 * sqrt(3 / 2) / 3.
        torch.testing.assert_close(final.weights[name], tensor, rtol=0, atol=4 * 0.05)
    assert digest(final.weights) != digest(local.weights)
