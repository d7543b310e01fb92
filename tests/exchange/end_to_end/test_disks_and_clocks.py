"""Disks that are really full, an interrupted link of 1 Mbit/s, and clocks that disagree."""

from __future__ import annotations

import random
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import torch
from link import Link, background, sent_digest, until, update

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import RunError
from medfed.exchange import MemoryExchange
from medfed.exchange.folder import Folder
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.wire import signing
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest

STUDY = "78" * 32
PATIENCE_S = 60


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of a few megabytes, which can be enlarged."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "medfed-test", str(place)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("needs the right to mount a file system")

    def grow(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)

    yield place, grow
    subprocess.run(["umount", "-l", str(place)], check=True)


def two_megabytes(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((500_000,), value)}


def test_a_full_disk_at_the_hub_ends_it_with_the_cure_and_it_resumes(small_disk):
    place, grow = small_disk
    config = HubConfig(rounds=2, sites=("north",), rule=FedAvg(), study_digest=STUDY)

    def run() -> GlobalModel:
        exchange = MemoryExchange(STUDY)
        waiting = background(lambda: answer(exchange))
        try:
            return run_hub(config, exchange, two_megabytes(), folder=place / "models")
        finally:
            exchange.close()
            waiting.join(PATIENCE_S)

    def answer(exchange: MemoryExchange) -> None:
        from medfed.errors import ExchangeError

        round = 0
        try:
            while True:
                received = exchange.fetch("north", round)
                round = received.round + 1
                if received.final:
                    exchange.send(Update("north", round, {}, 0))
                    return
                local = two_megabytes(float(round))
                exchange.send(Update("north", round, Difference(local, received.weights), 3))
        except ExchangeError:
            return

    # One checkpoint fits, but a second one beside it does not.
    with pytest.raises(
        RunError, match=r"round 1: its checkpoint could not be written: .*free disk space .* from round 0"
    ):
        run()
    assert [path.name for path in (place / "models").glob("round-*")] == ["round-00000.safetensors"]
    grow("16m")
    final = run()
    # By hand: with one site, its weights are the merged ones, and in round 2 it sends twos.
    assert (final.round, digest(final.weights)) == (2, digest(two_megabytes(2.0)))


@pytest.mark.parametrize(
    "full, logged",
    [
        ("share", "cannot be written to: No space left on device"),
        ("site", "its own disk (the run folder) is full"),
    ],
)
def test_a_full_disk_is_logged_and_it_continues_once_there_is_space(
    small_disk, tmp_path, caplog, full, logged
):
    place, grow = small_disk
    folders = {"share": tmp_path / "share", "site": tmp_path / "site", full: place}
    record = Folder(url=str(folders["share"]), poll_s=0.02)
    hub = record.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, two_megabytes(), study_digest=STUDY))
    north = record.open_site(STUDY, "north", folders["site"] / "north")
    received = north.fetch("north", 0)
    leaving = Update("north", 1, Difference(two_megabytes(1.0), received.weights), 3)
    sending = background(lambda: north.send(leaving))
    until(lambda: logged in caplog.text, "the full disk was logged")
    grow("16m")
    (arrival,) = hub.collect(1, ["north"], PATIENCE_S)
    sending.join(PATIENCE_S)
    assert digest(arrival.update.delta.minuend) == digest(two_megabytes(1.0))
    north.close()
    hub.close()


@pytest.mark.slow
def test_a_link_of_1_mbit_that_is_cut_now_and_then_finishes(enrolment, tmp_path):
    link = Link(enrolment, tmp_path, megabytes=2)
    chance = random.Random(5)
    try:
        link.north.fetch("north", 0)
        link.proxy.rate, link.proxy.up = 125_000, 0
        # Harder than one in twenty: every connection ends after 0.6 to 1.5 MB, so no upload fits into one.
        link.proxy.cut_after = int(chance.uniform(0.6e6, 1.5e6))
        link.north.send(update(megabytes=2))
        assert link.proxy.cuts >= 1
        link.proxy.cut_after = link.proxy.rate = None
        assert link.arrived() == sent_digest(megabytes=2)
        assert link.proxy.up < 2e6 * 1.1 + link.proxy.cuts * 2.2e6
    finally:
        link.close()


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_an_hour_apart_change_nothing(enrolment, tmp_path, monkeypatch, hours):
    """The hub's clock is right, the site's is off by an hour, and the certificates are new."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours)

    # What TLS holds against the clock, which OpenSSL reads by itself: made a moment ago, it
    # holds since yesterday.
    for party in ("hub", "north"):
        certificate = signing.Identity(enrolment.credentials(party)).certificate
        assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)
    record = lambda party: Folder(  # noqa: E731
        url=str(tmp_path / "share"), credentials=str(enrolment.credentials(party)), poll_s=0.02
    )
    hub = record("hub").open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, two_megabytes(), study_digest=STUDY))
    monkeypatch.setattr(signing, "datetime", Shifted)
    north = record("north").open_site(STUDY, "north", tmp_path / "north")
    received = north.fetch("north", 0)
    north.send(Update("north", 1, Difference(two_megabytes(1.0), received.weights), 3))
    monkeypatch.setattr(signing, "datetime", datetime)
    (arrival,) = hub.collect(1, ["north"], PATIENCE_S)
    assert arrival.error is None
    assert digest(arrival.update.delta.minuend) == digest(two_megabytes(1.0))
    north.close()
    hub.close()
