"""The memory of a site that waits: where many sites share a process, it is given back until their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medfed.exchange import SiteSide
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Released, Weights, load


def _users(storage: torch.UntypedStorage) -> int:
    """Return how many tensors and Python objects hold a memory; PyTorch's CUDA graphs ask the same way."""
    return int(torch._C._storage_Use_Count(storage._cdata))


_alone = torch.empty(1)
# Of a memory that one tensor holds, while Python looks at it.
ONE_USER = _users(_alone.untyped_storage())


@contextmanager
def idle_memory(
    exchange: SiteSide, module: nn.Module, last: GlobalModel | None, given: Collection[str] | None = None
) -> Iterator[None]:
    """While a site waits for the next model, hold no weights of its own that this model replaces anyway.

    Meanwhile the module shows the tensors of `last`, the model received last, which all sites of the process
    share; nobody writes to them. Afterwards it has memory of its own again, for `load` to fill. That is so
    only where all sites are in one process, and not for what stays at the site (`keep_local`, frozen
    parameters, integer buffers), which keeps its values. If waiting ends with an exception, the module holds
    the model received last. `given` are the tensors whose memory `give_up` has sent; None if nothing was.

    Where a round asks some of the sites only, a site may wait for many rounds, and would keep an old model:
    there its module shows NaN meanwhile. If waiting ends with an exception, it holds the hub's newest model.
    """
    if last is None or not getattr(exchange, "in_one_process", False):
        yield
        return
    shown = last.weights
    if getattr(exchange, "only_selected", False):
        shown = {name: torch.full((), torch.nan, dtype=t.dtype).expand(t.shape) for name, t in shown.items()}
    lent = _lend(module, shown, given)
    del last, shown
    try:
        yield
    except BaseException:
        for one in lent:
            one.own(filled=True)
        if getattr(exchange, "only_selected", False):
            newest: GlobalModel | None = getattr(exchange, "newest_model", None)
            load(module, {} if newest is None else newest.weights)
        raise
    for one in lent:
        one.own(filled=False)


@dataclass(frozen=True)
class _Lent:
    """A module's tensor that shows another's values, and how its own memory was laid out."""

    tensor: Tensor
    strides: Sequence[int]
    device: torch.device

    def own(self, filled: bool) -> None:
        """Give the tensor memory of its own, with the values that it shows or none yet."""
        memory = torch.empty_strided(
            self.tensor.shape, self.strides, dtype=self.tensor.dtype, device=self.device
        )
        self.tensor.data = memory.copy_(self.tensor.data) if filled else memory


def remembered(exchange: SiteSide, last: GlobalModel | None) -> GlobalModel | None:
    """Return what a site that waits remembers of the model received last: no weights, where it may be old."""
    if last is None or not getattr(exchange, "only_selected", False):
        return last
    return replace(last, weights={}, groups={})


def give_up(
    exchange: SiteSide, module: nn.Module, sent: Weights, last: Weights
) -> tuple[Weights, frozenset[str]]:
    """Return CPU tensors of the module's weights `sent`, for an update after which it waits.

    With them, the names of those that are the module's own memory, which it gives away.
    In one process they are the module's own wherever it then has other memory (`idle_memory`), else copies.
    """
    own = _lendable(module, last, sent) if getattr(exchange, "in_one_process", False) else {}
    given = frozenset(name for name, tensor in sent.items() if name in own and tensor.is_cpu)
    update = {name: t if name in given else t.to("cpu", copy=True) for name, t in sent.items()}
    return Released(update) if getattr(exchange, "in_one_process", False) else update, given


def _lend(module: nn.Module, shown: Weights, given: Collection[str] | None) -> list[_Lent]:
    """Let the module's tensors show those of the same names, and return them."""
    lent: dict[int, _Lent] = {}
    for name, own in _lendable(module, shown, {}, given).items():
        if id(own) not in lent:
            lent[id(own)] = _Lent(own, own.stride(), own.device)
            own.data = shown[name]
    return list(lent.values())


def _lendable(
    module: nn.Module, shown: Weights, sent: Weights, given: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return the module's tensors that can show those of the same names: those `given`, or all.

    Tensors of another dtype or shape (complex ones) cannot, nor those that share their memory with others:
    with tensors of the module, or with any that its code or a callback holds, which would no longer follow
    them. `sent` are tensors that share it now and are known. Once they are sent, others may look at them for
    a while, so that who shares can be told before only.
    """
    state = getattr(module, "_orig_mod", module).state_dict(keep_vars=True)
    known = Counter(tensor.untyped_storage().data_ptr() for tensor in sent.values())
    lendable: dict[str, Tensor] = {}
    for name, values in shown.items():
        own = state.get(name)
        if not isinstance(own, Tensor):
            continue
        same = own.shape == values.shape and own.dtype == values.dtype
        storage = own.untyped_storage()
        alone = given is not None or _users(storage) == ONE_USER + known[storage.data_ptr()]
        whole = storage.nbytes() == own.numel() * own.element_size()
        if same and alone and whole and (given is None or name in given):
            lendable[name] = own
    return lendable
