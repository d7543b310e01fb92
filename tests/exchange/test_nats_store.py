"""The store at a broker: how refusals are explained, and how its thread ends."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from broker_enrolment import Enrolment

from medfed.exchange._nats_refusals import explain_refusal
from medfed.exchange._object_store import Unreachable
from medfed.exchange.nats import Nats
from medfed.wire.signing import Identity, serial_number


def test_a_refused_certificate_is_named_with_what_to_do(enrolment, tmp_path):
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
        assert re.search(pattern, explain_refusal(text, identity)), explain_refusal(text, identity)
    assert explain_refusal("Connection refused", identity) == ""


VERIFY = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {} (_ssl.c:1006)"


def test_another_federations_broker_is_named(enrolment, tmp_path):
    enrolment.start()
    other = Enrolment(tmp_path / "other", sites=("north",))
    record = Nats(credentials=str(other.credentials("north")), urls=[enrolment.url])
    store = record._store("ab" * 32, Identity(other.credentials("north")))
    with pytest.raises(
        Unreachable, match=r"the server is not of the federation of 'north' \(.*issuer certificate\)"
    ):
        store.get("glob/abababababababab/current/m")
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
