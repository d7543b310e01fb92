"""A site that stops says one of a fixed list of words to others; the detail stays in its own log."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from medfed import errors
from medfed.exchange import DropOut, MemoryExchange, detail_of, reason_of
from medfed.exchange._drop_out import received_reason
from medfed.exchange.folder import Folder
from medfed.wire.update import GlobalModel

STUDY = "ab" * 32


@pytest.mark.parametrize(
    "error, reason",
    [
        (errors.PrivacyError("'east' trains on 12 examples"), DropOut.PRIVACY),
        (errors.EgressError("x"), DropOut.EGRESS),
        (errors.UpdateError("x"), DropOut.UPDATE),
        (errors.LabelError("x"), DropOut.DATA),
        (errors.StudyError("x"), DropOut.STUDY),
        (errors.WireError("x"), DropOut.HUB),
        (errors.DeadlineError("x"), DropOut.EXCHANGE),
        (errors.RunError("x"), DropOut.DISK),
        (OSError(28, "No space left", "/data/Mrs Smith"), DropOut.DISK),
        (errors.RuleError("x"), DropOut.ERROR),
        (KeyError("/data/Mrs Smith"), DropOut.ERROR),
        (KeyboardInterrupt(), DropOut.ERROR),
    ],
)
def test_every_error_has_fixed_words_that_repeat_nothing_of_it(error, reason):
    assert reason_of(error) is reason
    assert "Smith" not in detail_of(error)


def test_the_own_log_has_medfeds_message_and_the_name_of_anothers_error():
    assert detail_of(errors.PrivacyError("'east' trains on 12 examples")) == "'east' trains on 12 examples"
    assert detail_of(KeyError("/data/Mrs Smith")) == "training stopped with KeyError"
    full = OSError(errno.ENOSPC, "No space left on device", "/data/Mrs Smith")
    assert detail_of(full) == "training stopped with OSError: No space left on device"


@pytest.mark.parametrize("text", ["'east' trains on 12 examples", "POLICY", "cannot read [/data/x]\n\x1b[2J"])
def test_words_that_are_not_on_the_list_are_not_repeated(text):
    assert received_reason(text) is DropOut.UNKNOWN


def test_each_word_arrives_as_it_was_said_and_is_no_number_of_a_hospital():
    for reason in DropOut:
        assert received_reason(reason.value) is reason
        assert not any(character.isdigit() for character in reason)


def test_across_machines_the_detail_is_not_sent_and_other_words_are_refused(tmp_path):
    exchange = Folder(url=str(tmp_path / "share"), poll_s=0.05)
    site = exchange.open_site(STUDY, "east", tmp_path / "east")
    site.drop_out("east", DropOut.PRIVACY, "'east' trains on 12 examples")
    sent = (tmp_path / "share/up" / STUDY[:16] / "east/dropped_out/m").read_bytes()
    assert json.loads(sent.rpartition(b"\n")[2])["text"] == DropOut.PRIVACY
    everything = b"".join(path.read_bytes() for path in (tmp_path / "share").rglob("*") if path.is_file())
    assert b"12 examples" not in everything
    with pytest.raises(ValueError, match="trains on 12 examples"):
        site.drop_out("east", "'east' trains on 12 examples")
    site.close()


def test_within_one_process_other_words_are_refused_too():
    exchange = MemoryExchange(STUDY)
    with pytest.raises(ValueError, match="trains on 12 examples"):
        exchange.drop_out("east", "'east' trains on 12 examples")


def test_the_hub_does_not_repeat_other_words(tmp_path):
    exchange = Folder(url=str(tmp_path / "share"), poll_s=0.05)
    hub = exchange.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, {"w": torch.zeros(2)}, study_digest=STUDY))
    site = exchange.open_site(STUDY, "east", tmp_path / "east")
    site._presence.send("dropped_out", "'east' trains on 12 examples")
    (received,) = hub.collect(1, ["east"], 20)
    assert str(received.error) == f"site 'east', round 1: {DropOut.UNKNOWN}"
    site.close()
    hub.close()


def test_the_hub_knows_within_a_round_who_stopped_and_who_came_back(tmp_path):
    exchange = Folder(url=str(tmp_path / "share"), poll_s=0.05)
    hub, site = (
        exchange.open_hub(STUDY, tmp_path / "hub"),
        exchange.open_site(STUDY, "east", tmp_path / "east"),
    )
    hub.publish(GlobalModel(0, {"w": torch.zeros(1)}, study_digest=STUDY))
    site.drop_out("east", DropOut.POLICY)
    site.close()
    arrival = next(hub.collect(1, ["east", "west"], None))
    assert (arrival.site, hub.stopped_sites()) == ("east", {"east": str(DropOut.POLICY)})
    again = exchange.open_site(STUDY, "east", tmp_path / "east")
    again.fetch("east", 0)
    hub._answers.look_for_return()
    assert hub.stopped_sites() == {}
    again.close()
    hub.close()
