"""The memory of a site that waits: where many sites share a process, it is given back until their turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medfed.exchange import SiteSide
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Released, Weights


@contextmanager
def idle_memory(exchange: SiteSide, module: nn.Module, last: GlobalModel | None) -> Iterator[None]:
    """While a site waits for the next model, hold no weights of its own that this model replaces anyway.

    Meanwhile the module shows the tensors of `last`, the model received last, which all sites of the process
    share; nobody writes to them. Afterwards it has memory of its own again, for `load` to fill. That is so
    only where all sites are in one process, and not for what stays at the site (`keep_local`, frozen
    parameters, integer buffers), which keeps its values. If waiting ends with an exception, the module holds
    the model received last.

    Where a round asks some of the sites only, a site may wait for many rounds, and would keep an old model:
    there its module shows NaN meanwhile, and if waiting ends with an exception.
    """
    if last is None or not getattr(exchange, "in_one_process", False):
        yield
        return
    shown = last.weights
    if getattr(exchange, "only_selected", False):
        shown = {name: torch.full((), torch.nan, dtype=t.dtype).expand(t.shape) for name, t in shown.items()}
    lent = _lend(module, shown)
    del last, shown
    try:
        yield
    except BaseException:
        for one in lent:
            one.own(filled=True)
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


def give_up(exchange: SiteSide, module: nn.Module, sent: Weights, last: Weights) -> Weights:
    """Return CPU tensors of the module's weights `sent`, for an update after which it waits.

    In one process they are the module's own wherever it then has other memory (`idle_memory`), else copies.
    """
    if not getattr(exchange, "in_one_process", False):
        return {name: tensor.to("cpu", copy=True) for name, tensor in sent.items()}
    lendable = _lendable(module, last)
    return Released(
        {name: t if name in lendable and t.is_cpu else t.to("cpu", copy=True) for name, t in sent.items()}
    )


def _lend(module: nn.Module, shown: Weights) -> list[_Lent]:
    """Let the module's tensors show those of the same names, and return them."""
    lent: dict[int, _Lent] = {}
    for name, own in _lendable(module, shown).items():
        if id(own) not in lent:
            lent[id(own)] = _Lent(own, own.stride(), own.device)
            own.data = shown[name]
    return list(lent.values())


def _lendable(module: nn.Module, shown: Weights) -> dict[str, Tensor]:
    """Return the module's tensors that can show those of the same names.

    Tensors of another dtype or shape (complex ones), and those that share their memory with others, cannot.
    """
    state = getattr(module, "_orig_mod", module).state_dict(keep_vars=True)
    tensors = {id(value): value for value in state.values() if isinstance(value, Tensor)}
    users: dict[int, int] = {}
    for tensor in tensors.values():
        place = tensor.untyped_storage().data_ptr()
        users[place] = users.get(place, 0) + 1
    lendable: dict[str, Tensor] = {}
    for name, values in shown.items():
        own = state.get(name)
        if not isinstance(own, Tensor):
            continue
        same = own.shape == values.shape and own.dtype == values.dtype
        storage = own.untyped_storage()
        alone = users[storage.data_ptr()] == 1 and storage.nbytes() == own.numel() * own.element_size()
        if same and alone:
            lendable[name] = own
    return lendable
