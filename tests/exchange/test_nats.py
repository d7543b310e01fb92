"""Processes that exchange through a broker give the same weights as one process, even after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from broker_enrolment import Enrolment
from link import STUDY, enrolment_record, model

from medfed.errors import ExchangeError
from medfed.exchange._nats_store import _explain_refusal
from medfed.exchange._object_store import Unreachable
from medfed.exchange.nats import Nats
from medfed.wire.signing import Identity, serial_number
from medfed.wire.weights import digest


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
        os.kill(broker.pid, signal.SIGKILL)  # its supervisor restarts it
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
    rounds = found.rounds()
    absent = [row["round"] for row in rounds if row["answers"]["south"][0] == "absent"]
    # The hub waits for the deadline once; in later rounds it goes on as soon as north has answered.
    waited = [row["round"] for row in rounds if row["seconds"] >= 8.0]
    assert waited == absent[:1]
    found.go_on("south")
    found.digest()
    found.ended("north", "south")


def test_what_is_said_at_the_door_names_whose_certificate_and_what_to_do(enrolment, tmp_path):
    """TLS's own errors name neither the certificate's owner nor who can fix it."""
    identity = Identity(enrolment.credentials("north"))
    serial = serial_number(identity.certificate)
    for text, pattern in (
        (
            "nats: 'Authorization Violation'",
            f"the broker rejects 'north' .*{serial}.*ask the coordinator",
        ),
        (
            VERIFY.format("unable to get local issuer certificate"),
            "not of the federation of 'north'.*fingerprint",
        ),
        (
            VERIFY.format("certificate has expired"),
            "the broker's own certificate .*coordinator has to renew it",
        ),
        (
            VERIFY.format("IP address mismatch"),
            r"the server there has another name .*`medfed enrol init --host`",
        ),
    ):
        assert re.search(pattern, _explain_refusal(text, identity)), _explain_refusal(text, identity)
    assert _explain_refusal("Connection refused", identity) == ""


VERIFY = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {} (_ssl.c:1006)"


def test_another_federations_broker_is_named(enrolment, tmp_path):
    enrolment.start()
    other = Enrolment(tmp_path / "other", sites=("north",))
    record = Nats(credentials=str(other.credentials("north")), urls=[enrolment.url])
    store = record._store("ab" * 32, Identity(other.credentials("north")))
    with pytest.raises(
        Unreachable, match=r"the server is not of the federation of 'north' \(.*issuer certificate\)"
    ):
        store.get("glob/abababababababab/now/m")
    store.close()


def test_a_process_that_ends_without_closing_stops_the_connections_thread_first(enrolment):
    enrolment.start()
    text = (
        "import atexit, sys, threading\n"
        "names = lambda: print([t.name for t in threading.enumerate() if t.name == 'medfed-nats'])\n"
        "atexit.register(names)\n"  # what was registered later is called first
        "from pathlib import Path\n"
        "from medfed.exchange._nats_store import NatsStore\n"
        "from medfed.wire.signing import Identity\n"
        "store = NatsStore([sys.argv[1]], Identity(Path(sys.argv[2])), 'ab' * 32)\n"
        "store.put('glob/abababababababab/r00001/m', b'x')\n"
        "names()\n"
    )
    words = [sys.executable, "-c", text, enrolment.url, str(enrolment.credentials("hub"))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["['medfed-nats']", "[]"]


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
        Nats(**{**enrolment_record(link.enrolment, "north"), "urls": ["http://hub"]}).advertised_study()
