"""Hub and sites in scripts of one's own: in an event loop, over folder and nats, as two processes (DDP)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import pytorch_lightning as pl
import torch
from broker_enrolment import Enrolment
from process_group import run_group
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.errors import ExchangeError, StudyError
from medfed.exchange.memory import Memory
from medfed.federation import own_scripts, simulation
from medfed.federation.own_scripts import study_key
from medfed.runs.progress import Progress
from medfed.wire.weights import digest, weights_of

HERE = Path(__file__).parent


class Counter(pl.LightningModule):
    """One weight that grows by 1 in every step; its loss is best at 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return -self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val/loss", (self.weight - 2).square().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(exchange, site, folder, rounds=4):
    module, rows = Counter(), DataLoader(TensorDataset(torch.zeros(2, 1)), 2)
    with medfed.open_site(exchange, site, study="lesions", folder=folder, timeout_s=60) as side:
        trainer = pl.Trainer(
            max_epochs=rounds, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            callbacks=[medfed.FederatedCallback(site, side)],
        )  # fmt: skip
        trainer.fit(module, rows, rows)
    return module.weight.item()


class Shown(Progress):
    """A display that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list = []

    def start(self, title, sites, rounds, metric):
        self.seen.append((title, rounds, metric))

    def round(self, report):
        self.seen.append(report.round)

    def stop(self):
        self.seen.append("stopped")


def test_hub_and_sites_meet_in_a_folder_while_an_event_loop_runs(tmp_path):
    exchange = medfed.Folder(url=str(tmp_path / "share"), poll_s=0.05)
    best = medfed.ModelSelection("val/loss", "lower", keep="best")
    config = medfed.HubConfig(
        rounds=4, sites=("north", "south"), rule=medfed.FedAvg(), minimum=2, selection=best
    )
    shown, ends = Shown(), {}

    async def everything():
        # A notebook's cell runs inside a loop, and so does this.
        sites = [asyncio.to_thread(train, exchange, name, tmp_path / name) for name in ("north", "south")]
        hub = medfed.Hub(exchange, config, study="lesions", folder=tmp_path / "hub")
        tasks = [asyncio.ensure_future(one) for one in sites]
        await asyncio.sleep(0)
        final = hub.run(weights_of(Counter()), progress=shown)
        ends.update(zip(("north", "south"), await asyncio.gather(*tasks), strict=True))
        return final

    final = asyncio.run(everything())
    # Round r's model is r, by hand; the best by the squared distance to 2 is round 2's, over a folder too.
    assert (final.chosen, final.weights["weight"].item()) == (2, 2.0)
    assert ends == {"north": 2.0, "south": 2.0}
    assert shown.seen == [("lesions", 4, "val/loss"), 1, 2, 3, 4, 5, 6, "stopped"]


def test_a_site_that_nobody_answers_gives_up_after_its_time(tmp_path):
    site = medfed.open_site(
        medfed.Folder(url=str(tmp_path / "share"), poll_s=0.02),
        "north",
        study="x",
        folder=tmp_path,
        timeout_s=0.2,
    )
    assert (site.is_open, site.closed, site.parties) == (False, False, ())
    assert not (tmp_path / "exchange").exists()  # nothing is opened before it is used
    with site, pytest.raises(ExchangeError, match=r"site 'north': no model .* within 0\.2 s"):
        site.fetch("north", 0)
    assert site.is_open


def test_memory_and_a_federation_without_a_name_are_refused(tmp_path):
    config = medfed.HubConfig(rounds=1, sites=("a",), rule=medfed.FedAvg())
    with pytest.raises(
        StudyError, match=r"'memory' connects sites of one process, with medfed\.run_federation"
    ):
        medfed.Hub(Memory(), config, study="x", folder=tmp_path)
    with pytest.raises(StudyError, match="hub and sites of one federation meet under its name"):
        medfed.open_site(medfed.Folder(url="x"), "a", study="", folder=tmp_path)
    # Names that begin alike meet at different places, and a study file's digest stays what it is.
    assert study_key("a study of livers, one")[:16] != study_key("a study of livers, two")[:16]
    assert study_key("ab" * 32) == "ab" * 32


def run_ddp(tmp_path, exchanges):
    """Run a hub here and one site of two processes; return the hub's digest and each rank's line."""
    settings = json.dumps(
        [type(exchanges["north"]).__name__.lower(), msgspec.to_builtins(exchanges["north"])]
    )
    sys.path.insert(0, str(HERE / "end_to_end"))
    from test_by_hand import Net

    torch.manual_seed(1)
    config = medfed.HubConfig(rounds=2, sites=("north",), rule=medfed.FedAvg(), deadline_s=90)
    finals: list = []
    hub = medfed.Hub(exchanges["hub"], config, study="two processes", folder=tmp_path / "hub")
    thread = threading.Thread(target=lambda: finals.append(hub.run(weights_of(Net()))), daemon=True)
    thread.start()
    (tmp_path / "north").mkdir()
    done = run_group(
        [sys.executable, str(HERE / "end_to_end" / "script_site.py"), settings, str(tmp_path / "north")],
        timeout=120,
        folder=HERE / "end_to_end",
        environment={
            **os.environ,
            "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    thread.join(60)
    lines = {rank: (tmp_path / "north" / f"rank-{rank}").read_text() for rank in (0, 1)}
    return digest(finals[0].weights), lines


def check_ddp(hub, lines):
    assert lines == {
        0: f"rank 0 connected True weights {hub}\n",
        1: f"rank 1 connected False weights {hub}\n",
    }


@pytest.mark.slow
def test_ranks_above_0_of_a_plain_script_do_not_open_a_folder(tmp_path):
    exchange = medfed.Folder(url=str(tmp_path / "share"), poll_s=0.05)
    check_ddp(*run_ddp(tmp_path, {"hub": exchange, "north": exchange}))


@pytest.mark.slow
def test_ranks_above_0_of_a_plain_script_do_not_open_nats(tmp_path, nats_exchanges):
    check_ddp(*run_ddp(tmp_path, nats_exchanges))


@pytest.fixture
def nats_exchanges(tmp_path):
    enrolment = Enrolment(tmp_path / "enrolment", sites=("north",))
    enrolment.start()
    yield {
        party: medfed.Nats(credentials=str(enrolment.credentials(party)), urls=[enrolment.url])
        for party in ("hub", "north")
    }
    enrolment.end()


def test_every_wait_ends_after_its_stated_time(tmp_path, monkeypatch):
    """The times that the docstrings state are those of the code: 24 hours, if nothing else is given."""
    waited = {}

    def noted(config, *rest, **more):
        waited["hub"] = config.deadline_s
        raise KeyboardInterrupt

    monkeypatch.setattr(own_scripts, "run_hub", noted)
    config = medfed.HubConfig(rounds=1, sites=("north",), rule=medfed.FedAvg())
    hub = medfed.Hub(
        medfed.Folder(url=str(tmp_path / "share")), config, study="lesions", folder=tmp_path / "hub"
    )
    with pytest.raises(KeyboardInterrupt):
        hub.run({})
    monkeypatch.setattr(simulation, "simulate", lambda sites, weights, config, **more: config)
    waited["simulation"] = medfed.run_federation(
        {"north": lambda exchange: None}, {}, rule="fedavg", rounds=1
    ).deadline_s
    side = medfed.open_site(
        medfed.Folder(url=str(tmp_path / "share")), "north", study="lesions", folder=tmp_path / "north"
    )
    waited["site"] = side._connected().max_wait_s
    side.close()
    assert waited == dict.fromkeys(("hub", "simulation", "site"), 24 * 3600)
    for named in (medfed.Hub.run, medfed.run_federation, medfed.open_site):
        assert "24 hours" in " ".join((named.__doc__ or "").split())
