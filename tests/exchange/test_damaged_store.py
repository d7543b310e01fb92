"""A bit of what the broker stores is flipped: the study goes on, and the broker says what it removed."""

from __future__ import annotations

import threading

import pytest
from broker_enrolment import Enrolment
from chunked_updates import PATIENCE_S, STUDY, filled, filled_update

from medfed.deployment.enrolment.broker import Broker
from medfed.exchange.nats import Nats
from medfed.wire.update import GlobalModel
from medfed.wire.weights import digest


def flip(broker: Broker, stream: str, subject: bytes) -> None:
    """Flip a bit in the newest message under a subject, in the broker's files."""
    (path,) = (broker._folder / "store" / "jetstream" / "HUB" / "streams" / stream / "msgs").glob("*.blk")
    data = bytearray(path.read_bytes())
    data[data.rfind(subject) + len(subject) + 20] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream, subject", [("GLOB", b"current.m"), ("GLOB", b"state.m"), ("UP_north", b"heartbeat.m")]
)
def test_a_flipped_bit_in_the_brokers_store_ends_in_the_same_model(tmp_path, caplog, stream, subject):
    # nats-server 2.15 answers nothing more about a stream once it stores a message there for which it has to
    # read the damaged one, and neither deletes that stream nor ends.
    enrolment = Enrolment(tmp_path, sites=("north",))
    broker = enrolment.start()
    exchanges = {
        party: Nats(credentials=str(enrolment.credentials(party)), urls=[enrolment.url])
        for party in ("hub", "north")
    }
    hub = exchanges["hub"].open_hub(STUDY, tmp_path / "hub-run")
    north = exchanges["north"].open_site(STUDY, "north", tmp_path / "north-run")
    received: list[str] = []

    def train() -> None:
        for round in (1, 2, 3):
            hub.publish(GlobalModel(round - 1, filled(0.0), study_digest=STUDY))
            # At once: the next update overwrites the file of this one.
            received.extend(
                digest(one.update.delta.minuend) for one in hub.collect(round, ["north"], PATIENCE_S)
            )

    try:
        training = threading.Thread(target=train, daemon=True)
        training.start()
        for round in (1, 2, 3):
            assert digest(north.fetch("north", round - 1).weights) == digest(filled(0.0))
            if round == 2:
                broker.stop()
                flip(broker, stream, subject)
                enrolment.start()
            north.send(filled_update(round + 0.5, round=round))
        training.join(PATIENCE_S)
        assert received == [digest(filled(value)) for value in (1.5, 2.5, 3.5)]
    finally:
        north.close()
        hub.disconnect()
        enrolment.end()
