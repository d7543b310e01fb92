"""How an attempt to connect to the broker is ended: at once when every address has failed, or quietly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("medfed.exchange")


async def run_unless(failed: asyncio.Event, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
    """Await `work` until it ends or `failed` is set.

    Raises:
        ConnectionError: if `failed` is set.
        TimeoutError: if it takes too long.
    """
    doing, failing = asyncio.ensure_future(work), asyncio.ensure_future(failed.wait())
    try:
        await asyncio.wait({doing, failing}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        elif failing.done():
            raise ConnectionError("no answer")
        else:
            raise TimeoutError
    finally:
        for task in (doing, failing):
            task.cancel()
        await asyncio.gather(doing, failing, return_exceptions=True)


async def close_quietly(closing: Coroutine[Any, Any, None]) -> None:
    try:
        await asyncio.wait_for(closing, 2.0)
    except Exception as error:  # noqa: BLE001 - closing must not fail
        log.debug("an unfinished connection could not be closed: %s", error)
