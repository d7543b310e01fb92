"""Bad links, full disks and lost brokers: nothing is lost, and everything is logged."""

from __future__ import annotations

import json
import os
import signal
import time

from link import MEGABYTES, PATIENCE_S, Link, background, model, sent_digest, until, update

from medfed.deployment.enrolment.configuration import write_configuration
from medfed.wire.weights import digest


def test_an_upload_goes_on_by_chunk_when_every_connection_is_cut(link):
    link.north.fetch("north", 0)
    # A third of the update: restarted from zero after each cut, it would never arrive.
    link.proxy.cut_after = MEGABYTES * 1_000_000 // 3
    link.proxy.up = 0
    link.north.send(update())
    assert link.proxy.cuts >= 2
    link.proxy.cut_after = None
    assert link.arrived() == sent_digest()
    # Each cut loses what was in transit, at most a window of chunks.
    assert link.proxy.up < (MEGABYTES + 8.5 * link.proxy.cuts) * 1.1e6


def test_a_killed_sites_upload_goes_on_by_chunk(link):
    link.north.fetch("north", 0)
    link.proxy.rate = 20e6
    link.proxy.up = 0
    background(lambda: link.north.send(update()))
    until(lambda: link.proxy.up > 6e6, "half of it was sent")
    link.proxy.closed = True
    # The effect of a kill: the lock is released, nothing more is written, and the folder's files stay.
    link.north._presence.stop()
    link.north._lock.close()
    link.north._store.close()
    stored = len((link.folder / "north/exchange/outbox/r00001.stored").read_bytes()) // 4
    assert 0 < stored < MEGABYTES
    link.proxy.rate, link.proxy.up, link.proxy.closed = None, 0, False
    link.north = link.site()
    link.north.fetch("north", 0)  # it first sends the pending update
    assert link.arrived() == sent_digest()
    assert link.proxy.up < (MEGABYTES - stored + 1) * 1.1e6


def test_a_download_goes_on_by_chunk(link):
    link.proxy.rate = 20e6
    received = []
    waiting = background(lambda: received.append(link.north.fetch("north", 0)))
    until(lambda: link.proxy.down > 6e6, "half of it has come")
    link.proxy.closed = True
    time.sleep(0.2)
    link.proxy.rate, link.proxy.down, link.proxy.closed = None, 0, False
    waiting.join(PATIENCE_S)
    assert digest(received[0].weights) == digest(model())
    assert link.proxy.down < MEGABYTES * 0.85e6


def test_corruption_on_the_way_is_noticed_and_mended(link):
    link.north.fetch("north", 0)
    link.proxy.corrupt_after = 2_000_000
    link.north.send(update())
    assert link.proxy.corrupt_after is None
    assert link.arrived() == sent_digest()


def test_a_slow_link_finishes(link):
    link.north.fetch("north", 0)
    link.proxy.rate, link.proxy.delay_s = 4e6, 0.001
    link.north.send(update())
    assert link.arrived() == sent_digest()


def test_a_broker_killed_in_an_upload_costs_nothing(link):
    link.north.fetch("north", 0)
    link.proxy.rate, link.proxy.up = 20e6, 0
    sending = background(lambda: link.north.send(update()))
    until(lambda: link.proxy.up > 4e6, "a third of it was sent")
    os.kill(link.broker.pid, signal.SIGKILL)
    sending.join(PATIENCE_S)
    assert not sending.is_alive()
    assert link.arrived() == sent_digest()


def test_a_full_broker_is_logged_and_it_continues_once_there_is_space(enrolment, tmp_path, caplog):
    settings = enrolment.authority / "federation.json"
    federation = json.loads(settings.read_text())
    # Room for the model and half an update.
    settings.write_text(json.dumps({**federation, "disk": f"{MEGABYTES * 3 // 2}MB"}))
    write_configuration(enrolment.authority)
    link = Link(enrolment, tmp_path)
    try:
        # The hub says at once that what it wants to reserve is more than there is.
        assert "hub: the broker's disk has no room to reserve" in caplog.text
        link.north.fetch("north", 0)
        arrived = []
        sending = background(lambda: link.north.send(update()))
        collecting = background(lambda: arrived.append(link.arrived()))
        until(lambda: "the broker stores no more for 'north'" in caplog.text, "the full disk was logged")
        assert sending.is_alive()
        # The coordinator gives it more room and restarts it.
        settings.write_text(json.dumps({**federation, "disk": "1GB"}))
        write_configuration(enrolment.authority)
        os.kill(link.broker.pid, signal.SIGKILL)
        sending.join(PATIENCE_S)
        assert not sending.is_alive()
        collecting.join(PATIENCE_S)
        assert arrived == [sent_digest()]
    finally:
        link.close()


def test_a_full_disk_at_a_site_is_logged_and_it_continues_once_there_is_space(link, caplog):
    link.north.fetch("north", 0)
    file = link.folder / "north/exchange/outbox/update"
    file.parent.mkdir(exist_ok=True)
    file.symlink_to("/dev/full")
    sending = background(lambda: link.north.send(update()))
    until(lambda: "its own disk (the run folder) is full" in caplog.text, "the full disk was logged")
    assert sending.is_alive()
    file.unlink()
    sending.join(PATIENCE_S)
    assert link.arrived() == sent_digest()


def test_a_full_disk_at_the_hub_is_logged_and_it_continues_once_there_is_space(link, caplog):
    link.north.fetch("north", 0)
    link.north.send(update())
    spool = link.folder / "hub/exchange/spool"
    spool.mkdir(parents=True)
    (spool / "north.partial").symlink_to("/dev/full")
    received = []
    collecting = background(lambda: received.append(link.arrived()))
    until(
        lambda: "hub: collects: its own disk (the run folder) is full" in caplog.text,
        "the full disk was logged",
    )
    (spool / "north.partial").unlink()
    collecting.join(PATIENCE_S)
    assert received == [sent_digest()]
