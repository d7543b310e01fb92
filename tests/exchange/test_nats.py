"""Processes that exchange through a broker give the same weights as one process, even after a kill."""

from __future__ import annotations

import os
import signal

import pytest
from link import STUDY, enrolment_record, model

from medfed.errors import ExchangeError
from medfed.exchange.nats import Nats
from medfed.wire.weights import digest


@pytest.mark.slow
def test_processes_at_a_broker_give_the_bits_of_one_process(federation, enrolment, undisturbed):
    enrolment.start()
    study = federation(enrolment.exchange_of)
    study.start("hub", "north", "south")
    assert study.digest() == undisturbed()
    study.ended("north", "south")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["hub", "north", "broker"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_costs_no_bit(federation, enrolment, undisturbed, who, after):
    broker = enrolment.start()
    study = federation(enrolment.exchange_of, settings={"pause_s": 0.1})
    study.start("hub", "north", "south")
    study.until(lambda: (study.folder / "hub" / "pid").exists(), "the hub runs")
    study.until(lambda: len(study.rounds()) >= after, f"round {after} is over")
    if who == "broker":
        os.kill(broker.pid, signal.SIGKILL)  # its supervisor restarts it
    else:
        study.kill(who)
        study.start(who)
    assert study.digest() == undisturbed()


@pytest.mark.slow
def test_a_stopped_site_costs_its_deadline_once_and_is_back_when_it_goes_on(federation, enrolment):
    enrolment.start()
    study = federation(
        enrolment.exchange_of, settings={"pause_s": 0.05, "rounds": 8, "deadline_s": 8.0, "minimum": 1}
    )
    study.start("hub", "north", "south")
    study.until(lambda: len(study.rounds()) >= 1, "round 1 is over")
    study.stop("south")
    study.until(lambda: len(study.rounds()) >= 5, "rounds went on without south")
    rounds = study.rounds()
    absent = [row["round"] for row in rounds if row["answers"]["south"][0] == "absent"]
    # The hub waits for the deadline once; in later rounds it goes on as soon as north has answered.
    waited = [row["round"] for row in rounds if row["seconds"] >= 8.0]
    assert waited == absent[:1]
    study.go_on("south")
    study.digest()
    study.ended("north", "south")


@pytest.mark.slow
def test_a_hospital_that_lets_only_websockets_out_takes_that_way(link):
    link.north.close()
    urls = ["tls://127.0.0.1:1", f"wss://127.0.0.1:{link.enrolment.websocket_port}"]
    record = Nats(**{**enrolment_record(link.enrolment, "north"), "urls": urls})
    link.north = record.open_site(STUDY, "north", link.folder / "north")
    assert digest(link.north.fetch("north", 0).weights) == digest(model())


def test_an_address_of_another_kind_is_refused(link):
    with pytest.raises(
        ExchangeError, match=r"exchange\.urls: 'http://hub' begins with none of tls://, wss://"
    ):
        Nats(**{**enrolment_record(link.enrolment, "north"), "urls": ["http://hub"]}).offered_studies("north")
