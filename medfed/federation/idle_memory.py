"""The memory of a site that waits: where many sites share a process, it is given back until their turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from medfed.exchange import SiteSide
from medfed.wire.update import GlobalModel
from medfed.wire.weights import load, release


@contextmanager
def idle_memory(exchange: SiteSide, module: nn.Module, last: GlobalModel | None) -> Iterator[None]:
    """While a site waits for the next model, hold no copy of the weights that this model replaces.

    Only where all sites are in one process, and only of the tensors that the `last` model received had, since
    these are the ones that the next one fills. What stays at the site (`keep_local`, frozen parameters,
    integer buffers) keeps its values. If waiting ends with an exception, the module holds the last model
    received.
    """
    if last is None or not getattr(exchange, "in_one_process", False):
        yield
        return
    release(module, last.weights)
    try:
        yield
    except BaseException:
        load(module, last.weights)
        raise
