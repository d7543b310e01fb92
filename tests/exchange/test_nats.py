"""Real processes that meet at a real broker: the bits of one process, and those bits again when anyone is killed."""

from __future__ import annotations

import os
import signal

import pytest


@pytest.mark.slow
def test_processes_at_a_broker_give_the_bits_of_one_process(federation, enrolment, undisturbed):
    enrolment.start()
    found = federation(enrolment.exchange_of)
    found.start("hub", "north", "south")
    assert found.digest() == undisturbed()
    found.ended("north", "south")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["hub", "north", "broker"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_costs_no_bit(federation, enrolment, undisturbed, who, after):
    broker = enrolment.start()
    found = federation(enrolment.exchange_of, settings={"pause_s": 0.1})
    found.start("hub", "north", "south")
    found.until(lambda: (found.folder / "hub" / "pid").exists(), "the hub runs")
    found.until(lambda: len(found.rounds()) >= after, f"round {after} is over")
    if who == "broker":
        os.kill(broker.pid, signal.SIGKILL)  # its supervisor starts it again
    else:
        found.kill(who)
        found.start(who)
    assert found.digest() == undisturbed()


@pytest.mark.slow
def test_a_stopped_site_costs_its_deadline_once_and_is_back_when_it_goes_on(federation, enrolment):
    enrolment.start()
    found = federation(
        enrolment.exchange_of, settings={"pause_s": 0.05, "rounds": 8, "deadline_s": 8.0, "minimum": 1}
    )
    found.start("hub", "north", "south")
    found.until(lambda: len(found.rounds()) >= 1, "round 1 is over")
    found.stop("south")
    found.until(lambda: len(found.rounds()) >= 5, "rounds went on without south")
    told = found.rounds()
    absent = [row["round"] for row in told if row["answers"]["south"][0] == "absent"]
    # The deadline is waited for once; in the rounds after, the hub goes on as soon as north has answered.
    waited = [row["round"] for row in told if row["seconds"] >= 8.0]
    assert waited == absent[:1]
    found.go_on("south")
    found.digest()
    found.ended("north", "south")
