"""Whole studies under a mechanism with messages, in one process, over a folder, and with kills."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from answering import SITES, STUDY, answer, model
from simulated import simulated

from medfed.aggregation.fedadam import FedAdam
from medfed.aggregation.fedavg import FedAvg
from medfed.deployment.enrolment import enrol
from medfed.errors import PrivacyError
from medfed.exchange.folder import Folder
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.federation.round import SiteConnection, send_update
from medfed.privacy import NoPrivacy
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import Update
from medfed.wire.weights import digest

PATIENCE_S = 60
ROUNDS = 3


@pytest.mark.parametrize("rule", [FedAvg(), FedAdam()])
def test_a_study_ends_with_the_model_that_it_has_without(rule):
    def run(privacy, **more):
        sites = {name: lambda exchange, name=name: answer(exchange, privacy, name) for name in SITES}
        return simulated(sites, model(), rule=rule, rounds=ROUNDS, privacy=privacy, minimum=3, **more)

    plain, reports = run(NoPrivacy()), []
    summed = run(SecureSum(), on_round=reports.append)
    for name, tensor in plain.weights.items():
        # 64 bits with the defaults: the sum is rounded at 2^-51 times max_examples over the examples, 2^-40.
        assert torch.allclose(summed.weights[name], tensor, rtol=0, atol=1e-5)
    assert [report.round for report in reports] == [1, 2, 3, 4]
    assert {one.status for one in reports[0].results} == {"merged"}
    assert {one.scalars["val/loss"] for one in reports[-1].results} == {0.7}


class Place:
    """Hub and sites over a folder, with certificates."""

    def __init__(self, folder: Path, privacy: SecureSum) -> None:
        self.folder, self.privacy = folder, privacy
        enrol.init(folder / "enrolment", "test", ["127.0.0.1"])
        for site in SITES:
            request, _ = enrol.request(folder / "credentials" / site, site)
            enrol.sign(folder / "enrolment", request, folder / f"{site}.kit")
            enrol.accept(folder / "credentials" / site, folder / f"{site}.kit")
        self.ends: dict[str, BaseException | None] = {}

    def record(self, credentials: Path) -> Folder:
        return Folder(url=str(self.folder / "share"), credentials=str(credentials), poll_s=0.02)

    def site(self, name: str) -> threading.Thread:
        def work() -> None:
            side = self.record(self.folder / "credentials" / name).open_site(STUDY, name, self.folder / name)
            try:
                answer(side, self.privacy, name, AuditLog(self.folder / f"{name}.jsonl"))
                self.ends[name] = None
            except BaseException as error:
                self.ends[name] = error
            finally:
                side.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def hub(self, rounds: int = ROUNDS):
        hub = self.record(self.folder / "enrolment" / "hub").open_hub(STUDY, self.folder / "hub")
        plan = HubConfig(rounds, SITES, FedAvg(), self.privacy, minimum=3, study_digest=STUDY)
        try:
            return run_hub(plan, hub, model(), folder=self.folder / "models")
        finally:
            hub.close()


def test_over_a_folder_the_model_is_that_of_one_process_bit_for_bit(tmp_path):
    privacy = SecureSum(patience_s=20)
    place = Place(tmp_path, privacy)
    threads = [place.site(name) for name in SITES]
    final = place.hub()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert place.ends == dict.fromkeys(SITES)
    sites = {name: lambda exchange, name=name: answer(exchange, privacy, name) for name in SITES}
    one = simulated(sites, model(), rule=FedAvg(), rounds=ROUNDS, privacy=privacy, minimum=3)
    assert digest(final.weights) == digest(one.weights)
    log = (tmp_path / "north.jsonl").read_text()
    assert log.count('"event":"message sent"') == 4 * ROUNDS  # keys, shares, signed, unmask
    assert log.count('"event":"sent"') == ROUNDS + 1


def test_without_certificates_a_site_sends_nothing(tmp_path):
    record = Folder(url=str(tmp_path / "share"), poll_s=0.02)
    hub = record.open_hub(STUDY, tmp_path / "hub")
    site = record.open_site(STUDY, "north", tmp_path / "north")
    with pytest.raises(
        PrivacyError, match=r"secure_sum needs messages with signatures.*exchange\.credentials"
    ):
        send_update(SiteConnection("north", site, SecureSum()), Update("north", 1, model(), 5), model())
    site.close()
    hub.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["keys", "shares", "members", "signed"])
def test_a_hub_that_is_killed_after_any_of_its_messages_goes_on(tmp_path, step, monkeypatch):
    from medfed.exchange._hub_transport import HubTransport

    privacy = SecureSum(patience_s=20)
    place = Place(tmp_path, privacy)
    threads = [place.site(name) for name in SITES]
    real = HubTransport.send_messages

    def dies(self, round, attempt, said, channel):
        stands = real(self, round, attempt, said, channel)
        if (round, said) == (2, step):
            raise Killed
        return stands

    with monkeypatch.context() as patched:
        patched.setattr(HubTransport, "send_messages", dies)
        # A killed hub says no farewell, so the sites wait on.
        patched.setattr(HubTransport, "close", lambda self: (self._store.close(), self._lock.close()))
        with pytest.raises(Killed):
            place.hub()
    final = place.hub()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert place.ends == dict.fromkeys(SITES)
    sites = {name: lambda exchange, name=name: answer(exchange, privacy, name) for name in SITES}
    one = simulated(sites, model(), rule=FedAvg(), rounds=ROUNDS, privacy=privacy, minimum=3)
    assert digest(final.weights) == digest(one.weights)


@pytest.mark.parametrize("step", ["keys", "shares", "update", "signed", "unmask"])
def test_a_site_that_is_killed_at_any_step_and_comes_back_is_in_the_next_rounds(tmp_path, step, monkeypatch):
    from medfed.exchange._site_transport import SiteTransport

    privacy = SecureSum(patience_s=1.5, threshold=0.6, min_sites=2, colluding=0)
    place = Place(tmp_path, privacy)
    post, send, killed = SiteTransport.send_message, SiteTransport.send, []

    def dies(self, site, round, attempt, said, data):
        if (site, round, said) == ("south", 2, step) and not killed:
            killed.append(site)
            raise Killed
        post(self, site, round, attempt, said, data)

    def dies_sending(self, update):
        if (update.site, update.round, step) == ("south", 2, "update") and not killed:
            killed.append(update.site)
            raise Killed
        send(self, update)

    monkeypatch.setattr(SiteTransport, "send_message", dies)
    monkeypatch.setattr(SiteTransport, "send", dies_sending)
    threads = [place.site(name) for name in SITES]

    def comes_back() -> None:
        threads[SITES.index("south")].join(PATIENCE_S)
        threads[SITES.index("south")] = place.site("south")

    waiting = threading.Thread(target=comes_back, daemon=True)
    waiting.start()
    hub = place.record(tmp_path / "enrolment" / "hub").open_hub(STUDY, tmp_path / "hub")
    reports = []
    plan = HubConfig(ROUNDS, SITES, FedAvg(), privacy, minimum=2, study_digest=STUDY)
    run_hub(plan, hub, model(), on_round=reports.append)
    hub.close()
    waiting.join(PATIENCE_S)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert killed == ["south"]
    assert place.ends == dict.fromkeys(SITES)
    status = [{one.site: one.status for one in report.results}["south"] for report in reports]
    assert status[0] == status[2] == "merged"
    assert status[1] == ("merged" if step in ("keys", "signed", "unmask") else "absent")
