"""The NATS client for large messages: what it puts together is what nats-py's own parser would, however it is cut."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from nats.protocol.parser import Parser

from medfed.exchange._bulk import VIEW_BYTES, BulkParser


class Heard:
    """What nats-py's client does with a message: here it is kept."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: Any, headers: Any) -> None:
        self.messages.append((sid, subject, reply, bytes(data), headers))

    async def _process_pong(self) -> None:
        self.messages.append(("pong",))


def stream() -> bytes:
    """Return messages with and without a header, empty, small and large, as a broker sends them."""
    chance = random.Random(5)
    found = b"PONG\r\n"
    for size in (0, 1, 4000, 4096, VIEW_BYTES - 1, VIEW_BYTES, 300_000):
        body = chance.randbytes(size)
        found += b"MSG inbox.a 3 %d\r\n" % size + body + b"\r\n"
        head = b"NATS/1.0 404 Not found\r\n\r\n"
        found += b"HMSG inbox.b 3 reply.c %d %d\r\n" % (len(head), len(head) + size) + head + body + b"\r\n"
    return found + b"PONG\r\n"


def parsed(parser: type[Parser], data: bytes, most: int) -> list[tuple[Any, ...]]:
    """Return what a parser makes of the bytes, given in pieces of random sizes up to `most`."""
    heard, chance = Heard(), random.Random(most)
    own = parser(heard)

    async def feed() -> None:
        at = 0
        while at < len(data):
            size = chance.randint(1, most)
            await own.parse(data[at : at + size])
            at += size

    asyncio.run(feed())
    return heard.messages


@pytest.mark.parametrize("most", [7, 5_000, 100_000, 2_000_000])
def test_messages_are_those_of_nats_own_parser_however_they_are_cut(most):
    data = stream()
    found = parsed(BulkParser, data, most)
    assert len(found) == 2 + 2 * 7
    assert found == parsed(Parser, data, max(most, 5_000))


def test_a_lost_connection_leaves_nothing_of_a_half_message():
    heard = Heard()
    parser = BulkParser(heard)

    async def cut_off() -> None:
        await parser.parse(b"MSG inbox.a 3 100000\r\n" + b"x" * 50_000)
        parser.reset()
        await parser.parse(b"MSG inbox.a 3 2\r\nok\r\n")

    asyncio.run(cut_off())
    assert heard.messages == [(3, b"inbox.a", b"", b"ok", None)]
