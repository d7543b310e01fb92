"""Every text field of every message, filled with anything, shows in no medium as more than text."""

from __future__ import annotations

import io
import typing

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from medfed.errors import MedfedError
from medfed.evaluation.row_transport import accept_rows
from medfed.exchange._manifest import (
    PROTOCOL,
    ControlMessage,
    Manifest,
    encode_sealed,
    open_control,
    open_manifest,
)
from medfed.federation.acceptance import accept_numbers
from medfed.runs.progress import LiveProgress, PlainProgress
from medfed.runs.rounds import RoundLine, RoundReport, SiteResult, append_round, read_rounds
from medfed.wire import encoding
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.messages import FORMAT, Message, open_message, seal_message
from medfed.wire.signing import Unsigned
from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_text_template
from medfed.wire.update import Update, check_update

STUDY = "ab" * 32
WEIGHTS = {"w": torch.zeros(2)}
HOSTILE = [
    "\x1b[2J\x1b[8m",
    "a\nround 9: north refused",
    "\u202e\u2066",
    "[/x] [red]",
    "<script>",
    "\x9b\u200b\u3164",
]
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)

RECORDS = {
    Manifest: Manifest(PROTOCOL, "update", STUDY, "run", "evil", 1, 3, 2, ["0" * 64, "1" * 64]),
    ControlMessage: ControlMessage(PROTOCOL, "dropped_out", STUDY, "evil", "why"),
    Message: Message(FORMAT, STUDY, "run", "evil", "hub", 1, 0, "keys", b""),
}


def text_fields(record: type) -> list[str]:
    """Return the fields of a message that hold text: any that JSON may fill with a string."""
    hints = typing.get_type_hints(record)
    return [name for name, hint in hints.items() if hint is not bytes and "str" in str(hint)]


FIELDS = [(record, name) for record in RECORDS for name in text_fields(record)]


def refusal(act) -> str:
    """Return the words of medfed's refusal; nothing where it accepts."""
    try:
        act()
    except MedfedError as error:
        return str(error)
    return ""


def shown(reason: str, folder) -> None:
    """Show a reason wherever the hub shows one, and check that it stays text of one line."""
    result = SiteResult("evil", "refused", reason, notes=(reason,))
    report = RoundReport(1, (result,), 1.0, 0)
    out = io.StringIO()
    live = LiveProgress()
    live._console = Console(file=out, force_terminal=True, width=10_000)
    live.round(report)
    lines = out.getvalue().split("\n")
    assert len(lines) == 1 + (2 if reason else 1)
    assert all(line.isprintable() for line in lines)
    rounds = folder / "rounds.jsonl"
    rounds.unlink(missing_ok=True)
    append_round(rounds, report)
    (line,) = read_rounds(rounds)
    assert isinstance(line, RoundLine)
    assert line.reason.isprintable()
    audit = folder / "audit.jsonl"
    audit.unlink(missing_ok=True)
    AuditLog(audit).write("refused", site="evil", reason=reason)
    (entry,) = entries(audit)
    assert entry["reason"].isprintable()


def test_the_walk_finds_the_fields_that_there_are():
    assert {"text", "party", "session"} <= set(text_fields(ControlMessage))
    assert {"chunks", "run", "study"} <= set(text_fields(Manifest))
    assert {"step", "to", "party"} <= set(text_fields(Message))


@pytest.mark.parametrize("record, name", FIELDS, ids=[f"{r.__name__}.{n}" for r, n in FIELDS])
@given(text=texts)
@settings(max_examples=15, deadline=None)
def test_a_field_of_a_message(tmp_path_factory, record, name, text):
    folder = tmp_path_factory.getbasetemp() / "fields"
    folder.mkdir(exist_ok=True)
    value = [text, text] if name == "chunks" else text
    changed = msgspec.structs.replace(RECORDS[record], **{name: value})
    seal = Unsigned()
    if record is Message:
        reason = refusal(lambda: open_message(seal_message(changed, seal), seal, "evil", STUDY, "run"))
    else:
        data = encode_sealed(changed, seal)
        opened = open_manifest if record is Manifest else open_control
        what = "update" if record is Manifest else "dropped_out"
        reason = refusal(lambda: opened(data, seal, "evil", what, STUDY))
    shown(reason, folder)


@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_names_in_an_update(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "update"
    folder.mkdir(exist_ok=True)
    tensor = {text: torch.tensor([float("nan"), 0.0])}
    for sent in (
        Update(text, 1, {"w": torch.ones(2)}, 3),
        Update("evil", 1, tensor, 3),
        Update("evil", 1, {"w": torch.ones(2)}, 3, groups={text: tensor}),
    ):
        shown(refusal(lambda sent=sent: check_update(sent, WEIGHTS)), folder)
    numbered = Update("evil", 1, {}, 0, {text: float("inf"), f"row/{text}/value": 0.5})
    for note in (*accept_numbers(numbered)[1], *accept_rows(numbered.scalars, 1, "evil", 9, None)[1]):
        shown(note, folder)
    data = encoding.encode_update(Update("evil", 1, {"w": torch.ones(2)}, 3, {text: 1.0}), STUDY)
    decoded = encoding.decode_update(data, WEIGHTS, STUDY)
    accepted, _ = accept_numbers(decoded)
    assert all(name.isprintable() for name in accepted.scalars)


@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_a_class_hides_nothing_of_the_page_that_is_agreed_to(tmp_path_factory, text):
    template = tmp_path_factory.getbasetemp() / "page.txt.jinja"
    template.write_text("Classes {{ classes | join(', ') }}\nDigest {{ digest }}\n")
    page = render(template, show=for_text_template, classes=["healthy", text], digest="abc")
    assert page.count("\n") <= 2
    assert page.replace("\n", "").isprintable()
    assert page.rstrip("\n").endswith("Digest abc")


@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_a_page_shows_a_reason_as_text(tmp_path_factory, text):
    template = tmp_path_factory.getbasetemp() / "page.html.jinja"
    template.write_text("<p>{{ reason }}</p>")
    page = render(template, reason=text)
    inner = page.removeprefix("<p>").removesuffix("</p>")
    assert "<" not in inner
    assert inner.replace("\n", "").isprintable()


@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_a_plain_display(text):
    import contextlib

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        PlainProgress().log(text)
    assert out.getvalue().replace("\n", "").isprintable()
