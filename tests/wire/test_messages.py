"""Small sealed messages: what is refused when one is opened, and what channels send and log."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
import torch

from medfed.errors import PrivacyError, WireError
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.messages import (
    FORMAT,
    MAX_MESSAGE_BYTES,
    HubChannel,
    Message,
    ReceivedMessage,
    SiteChannel,
    Statement,
    open_message,
    seal_message,
    unverified_data,
)
from medfed.wire.signing import SessionSeal, Unsigned
from medfed.wire.update import GlobalModel, model_digest

STUDY, RUN = "ab" * 32, "cd" * 16
MESSAGE = Message(FORMAT, STUDY, RUN, "north", "hub", 2, 1, "keys", b"\x00\xff")
MODEL = GlobalModel(1, {"w": torch.ones(2)})


def stated(content: bytes, model: GlobalModel | None = None, **fields) -> Message:
    """Return a message that states from which model its site trains."""
    statement = Statement(model_digest(model) if model else "", content)
    return msgspec.structs.replace(MESSAGE, data=msgspec.json.encode(statement), **fields)


def changed(**fields) -> bytes:
    return Unsigned().seal(msgspec.json.encode(msgspec.structs.replace(MESSAGE, **fields)))


def test_a_message_is_json_with_its_address_and_its_data_in_base64():
    sealed = seal_message(MESSAGE, Unsigned())
    assert json.loads(sealed.partition(b"\n")[2]) == {
        "is": "letter", "format": "medfed-message-2", "study": STUDY, "run": RUN, "party": "north",
        "to": "hub", "round": 2, "attempt": 1, "step": "keys", "data": "AP8=",
    }  # fmt: skip
    assert open_message(sealed, Unsigned(), "north", STUDY, RUN) == MESSAGE
    assert unverified_data(seal_message(stated(b"content"), Unsigned())) == b"content"
    assert MESSAGE.when == (2, 1)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            changed(format="medfed-message-9"),
            "format 'medfed-message-9', this medfed reads 'medfed-message-2'",
        ),
        (changed(party="south"), "a message sealed by 'north' claims to be from 'south'"),
        (changed(study="ef" * 32), "belongs to study efefefefefef, .*; expected abababababab, .* is a copy"),
        (changed(run="ef" * 16), r"run efefefef; expected .*, run cdcdcdcd"),
        (Unsigned().seal(b"{"), "a message of 'north' cannot be decoded"),
        (Unsigned().seal(b"[" * 100_000), "a message of 'north' cannot be decoded"),
        (b"x" * (MAX_MESSAGE_BYTES + 1), "a message of 4194305 bytes; at most 4194304 are read"),
    ],
    ids=["format", "party", "study", "run", "no JSON", "deep JSON", "large"],
)
def test_a_message_that_is_not_the_expected_one_is_refused(data, message):
    with pytest.raises(WireError, match=message):
        open_message(data, Unsigned(), "north", STUDY, RUN)


def test_a_message_of_any_run_is_opened_where_none_is_given():
    assert open_message(changed(run="ef" * 16), Unsigned(), "north", STUDY).run == "ef" * 16


def test_a_message_in_another_partys_name_is_refused():
    keys: dict = {}
    south, hub = SessionSeal("south", keys), SessionSeal("hub", keys)
    SessionSeal("north", keys)
    with pytest.raises(WireError, match="its signature by 'north' is invalid"):
        open_message(seal_message(MESSAGE, south), hub, "north", STUDY)


def test_a_message_that_nobody_would_read_is_not_sealed():
    large = msgspec.structs.replace(MESSAGE, data=bytes(MAX_MESSAGE_BYTES))
    with pytest.raises(WireError, match=r"a message of \d+ bytes; at most 4194304 are read"):
        seal_message(large, Unsigned())


class Recorded:
    """An exchange that records what it is asked to send and returns what a test has prepared."""

    signed = True

    def __init__(self, **answers) -> None:
        self.calls: list[tuple] = []
        self.answers = answers

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls.append((name, *arguments))
            return self.answers.get(name)

        return call


def test_what_a_site_sends_and_receives_is_in_its_audit_log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    answer = msgspec.structs.replace(MESSAGE, party="hub", to="north", step="members", data=b"abc")
    exchange = Recorded(receive_message=answer)
    channel = SiteChannel(exchange, "north", 2, log, MODEL)
    channel.send(1, "keys", b"secret")
    assert channel.receive({"members": 1}) == answer
    assert exchange.calls == [
        ("send_message", "north", 2, 1, "keys", stated(b"secret", MODEL).data),
        ("receive_message", "north", 2, {"members": 1}),
    ]
    sent, received = entries(tmp_path / "audit.jsonl")
    digest = hashlib.sha256(b"secret").hexdigest()
    assert (sent["event"], sent["to"], sent["bytes"], sent["sha256"]) == ("message sent", "hub", 6, digest)
    assert (received["event"], received["step"], received["bytes"]) == ("message received", "members", 3)
    assert "secret" not in (tmp_path / "audit.jsonl").read_text()


def test_a_round_that_is_over_is_not_logged_as_a_message(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    assert SiteChannel(Recorded(), "north", 2, log).receive({"members": 1}) is None
    assert not (tmp_path / "audit.jsonl").exists()


def test_a_sites_last_message_counts_in_its_own_round_only():
    exchange = Recorded(sent_message=stated(b"content"))
    assert SiteChannel(exchange, "north", 2).sent("keys").data == b"content"
    assert SiteChannel(exchange, "north", 3).sent("keys") is None
    assert SiteChannel(Recorded(), "north", 2).sent("keys") is None


def test_the_hubs_last_messages_count_in_their_own_round_only():
    exchange = Recorded(sent_messages=((2, 4), {"north": b"x"}))
    assert HubChannel(exchange, ("north",), 2).sent("keys") == (4, {"north": b"x"})
    assert HubChannel(exchange, ("north",), 3).sent("keys") is None
    assert HubChannel(Recorded(), ("north",), 2).sent("keys") is None


def test_a_refused_message_is_in_the_hubs_log_and_still_reported(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    older = GlobalModel(1, {"w": torch.zeros(2)})
    arrived = [
        ReceivedMessage("north", stated(b"content", MODEL)),
        ReceivedMessage("south", error=WireError("it is a copy")),
        ReceivedMessage("west", stated(b"content", older)),
        ReceivedMessage("east", MESSAGE),
    ]
    channel = HubChannel(Recorded(collect_messages=arrived), tuple("nswe"), 2, log, MODEL)
    first, *refused = channel.collect(1, "keys", tuple("nswe"), None)
    assert (first.site, first.message.data, first.error) == ("north", b"content", None)
    reasons = [str(one.error) for one in refused]
    assert reasons[0] == "it is a copy"
    assert f"site 'west', round 2: it trains from model {model_digest(older)[:12]}, expected" in reasons[1]
    assert "the message of 'north' for step 'keys' cannot be decoded" in reasons[2]
    lines = list(entries(tmp_path / "audit.jsonl"))
    assert [(line["event"], line["site"], line["reason"]) for line in lines] == [
        ("message refused", site, reason)
        for site, reason in zip(("south", "west", "east"), reasons, strict=True)
    ]


def site_channel(message: Message, log: AuditLog | None = None) -> SiteChannel:
    """Return the channel of south, which agreed to a study of north and south."""
    exchange = Recorded(open_message=message)
    return SiteChannel(exchange, "south", 2, log or AuditLog(None), MODEL, ("north", "south"))


def test_a_forwarded_message_is_opened_where_its_site_trains_from_the_same_model():
    channel = site_channel(stated(b"content", MODEL))
    assert channel.open(b"sealed", "north").data == b"content"
    assert channel.exchange.calls == [("open_message", "south", b"sealed", "north")]
    older = site_channel(stated(b"content", GlobalModel(1, {"w": torch.zeros(2)})))
    with pytest.raises(PrivacyError, match=r"round 2: site 'north' trains from model .* different ones"):
        older.open(b"sealed", "north")


@pytest.mark.parametrize("party", ["hub", "broker", "west"])
def test_nobody_but_a_hospital_of_the_agreed_study_is_a_party(party):
    channel = site_channel(stated(b"content", MODEL))
    with pytest.raises(PrivacyError, match=rf"the hub shows '{party}' as a party, .* \(north, south\)"):
        channel.open(b"sealed", party)
    assert channel.exchange.calls == []


def test_a_site_that_stops_answering_says_why_in_its_log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    channel = site_channel(MESSAGE, log)
    with pytest.raises(PrivacyError, match="it lies"), channel.logged_refusals():
        raise PrivacyError("it lies")
    (line,) = entries(tmp_path / "audit.jsonl")
    assert (line["event"], line["site"], line["round"], line["reason"]) == (
        "hub refused", "south", 2, "it lies",
    )  # fmt: skip
