"""Retries with growing pauses, warnings that are logged once, and the lock on a party's folder."""

from __future__ import annotations

import errno

import pytest

from medfed.errors import EndedError, ExchangeError
from medfed.exchange import _protocol
from medfed.exchange._object_store import Refused, Unreachable
from medfed.exchange._protocol import Backoff, Retry, WarnOnce, acquire_lock, read_or_create


@pytest.fixture
def pauses(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(_protocol.time, "sleep", slept.append)
    return slept


def failing(*errors):
    """Return a call that raises each error in turn, then returns 'done'."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_a_text_is_logged_once(caplog):
    warn = WarnOnce("site 'north'")
    assert [warn("the disk is full"), warn("the disk is full"), warn("lost")] == [True, False, True]
    assert caplog.messages == ["site 'north': the disk is full", "site 'north': lost"]


def test_ever_other_texts_are_logged_up_to_a_limit_and_nothing_is_new_beyond(caplog, monkeypatch):
    monkeypatch.setattr("medfed.exchange._protocol.MAX_WARNINGS", 3)
    warn = WarnOnce("hub")
    assert [warn(f"heartbeat {number}") for number in range(5)] == [True, True, True, False, False]
    assert len(caplog.messages) == 3


def test_pauses_grow_by_0_7_of_themselves_from_a_tenth_of_a_second_to_five(pauses):
    backoff = Backoff(WarnOnce("hub"))
    for _ in range(10):
        backoff.wait(Unreachable("no route"), "sends")
    assert pauses == pytest.approx([min(0.1 * 1.7**number, 5.0) for number in range(10)])
    backoff.reset()
    backoff.wait(Unreachable("no route"), "sends")
    assert pauses[-1] == 0.1


def test_it_tries_until_it_succeeds_and_says_why_it_waits(pauses, caplog):
    no_space, quota = OSError(errno.ENOSPC, "no space"), OSError(errno.EDQUOT, "quota")
    call = failing(Unreachable("no route"), no_space, quota, Unreachable("no route"))
    assert Retry(WarnOnce("site"))("sends", call) == "done"
    assert len(pauses) == 4
    assert caplog.messages == [
        "site: sends: no route; trying again",
        "site: sends: its own disk (the run folder) is full; it continues once there is space",
    ]


def test_another_error_of_the_own_disk_ends_it(pauses):
    call = failing(OSError(errno.EIO, "Input/output error", "/run/exchange/outbox"))
    with pytest.raises(ExchangeError, match=r"own disk \(the run folder\) failed: Input/output") as e:
        Retry(WarnOnce("site"))("sends", call)
    assert "outbox" not in str(e.value)
    assert pauses == []


def test_a_party_that_was_stopped_does_not_try_again(pauses):
    checks = []

    def raise_if_stopped():
        checks.append(len(checks))
        if len(checks) == 3:
            raise ExchangeError("it was replaced")

    with pytest.raises(ExchangeError, match="it was replaced"):
        Retry(WarnOnce("site"), raise_if_stopped)("sends", failing(*[Unreachable("no route")] * 9))
    assert (checks, len(pauses)) == ([0, 1, 2], 2)


def test_one_process_holds_a_folder(tmp_path):
    path = tmp_path / "exchange" / "lock"
    first = acquire_lock(path, "site 'north'")
    with pytest.raises(ExchangeError, match=r"site 'north' already runs with this folder: .* exchange/lock"):
        acquire_lock(path, "site 'north'")
    first.close()
    acquire_lock(path, "site 'north'").close()


def test_a_small_file_keeps_its_first_text(tmp_path):
    path = tmp_path / "run"
    assert read_or_create(path, "") == ""
    assert not path.exists()
    assert read_or_create(path, "first") == "first"
    assert read_or_create(path, "second") == "first"
    path.write_text("")  # as a power cut may leave it
    assert read_or_create(path, "second") == "second"


def test_a_bit_that_flips_in_a_runs_identifier_is_noticed(tmp_path):
    path, name = tmp_path / "run", "0123456789abcdef" * 2
    read_or_create(path, name)
    intact = path.read_bytes()
    for bit in range(8 * len(intact)):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ExchangeError, match=r"exchange/run is damaged: .* restore the run folder"):
            read_or_create(path, "")
    path.write_text(name)  # as an earlier medfed wrote it
    assert read_or_create(path, "") == name


def test_a_brokers_refusal_reaches_the_audit_log_once_and_a_lost_connection_does_not(pauses):
    errors = [
        Unreachable("no route"),
        Refused("the broker rejects 'north'"),
        Refused("the broker rejects 'north'"),
    ]
    warn, told = WarnOnce("site 'north'"), []
    warn.on_refused = told.append

    def call() -> str:
        if errors:
            raise errors.pop(0)
        return "in"

    assert Retry(warn)("joins", call) == "in"
    assert told == ["joins: the broker rejects 'north'; trying again"]


def test_an_outage_is_one_line_whatever_fails_meanwhile_and_a_later_one_another(pauses, caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(_protocol.time, "monotonic", lambda: now[0])
    warn, told = WarnOnce("hub"), []
    warn.on_refused = told.append
    retry, down = Retry(warn), Refused("the broker is down")
    first = "hub: collects: the broker is down; trying again"
    Backoff(warn).wait(down, "collects")
    assert retry("publishes", failing(down, down)) == "done"
    assert caplog.messages == [first]
    now[0] += 59  # it comes and goes: no line for each time
    retry("publishes", failing(down))
    assert caplog.messages == [first]
    now[0] += 2
    retry("publishes", failing(down, down))
    assert caplog.messages == [first, "hub: publishes: the broker is down; trying again"]
    assert told == ["collects: the broker is down; trying again"]


def test_a_party_gives_up_once_it_has_failed_for_longer_than_it_bears(pauses, monkeypatch):
    monkeypatch.setattr(_protocol.time, "monotonic", lambda: 3600.0 * len(pauses))

    def fails():
        raise Unreachable("no route")

    retry = Retry(WarnOnce("site 'north'"), max_outage_s=lambda: 2 * 3600.0)
    with pytest.raises(EndedError, match=r"site 'north': sends: without success for 2 hours \(give_up_hours"):
        retry("sends", fails)
    assert len(pauses) == 3
