"""The memory of a site that waits: where many sites share a process, it is given back until their turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfed.exchange import SiteSide
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights


def _users(storage: torch.UntypedStorage) -> int:
    """Return how many tensors and Python objects hold a memory; PyTorch's CUDA graphs ask the same way."""
    return int(torch._C._storage_Use_Count(storage._cdata))


_alone = torch.empty(1)
# Of a memory that one tensor holds, while Python looks at it.
ONE_USER = _users(_alone.untyped_storage())


@contextmanager
def idle_memory(exchange: SiteSide, module: nn.Module, last: GlobalModel | None) -> Iterator[None]:
    """While a site waits for the next model, hold no weights of its own that this model replaces anyway.

    Meanwhile the module shows the tensors of `last`, the model received last, which all sites of the process
    share; nobody writes to them. Afterwards it has memory of its own again, for `load` to fill. That is so
    only where all sites are in one process, and not for what stays at the site (`keep_local`, frozen
    parameters, integer buffers), which keeps its values. If waiting ends with an exception, the module holds
    the model received last.
    """
    if last is None or not getattr(exchange, "in_one_process", False):
        yield
        return
    lent = _lend(module, last.weights)
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


def _lend(module: nn.Module, shown: Weights) -> list[_Lent]:
    """Let the module's tensors show those of the same names, and return them.

    Tensors of another dtype or shape (complex ones), and those that share their memory with others, keep it:
    with other tensors of the module, or with any that its code or a callback holds.
    """
    state = getattr(module, "_orig_mod", module).state_dict(keep_vars=True)
    lent: dict[int, _Lent] = {}
    for name, values in shown.items():
        own = state.get(name)
        if not isinstance(own, Tensor) or id(own) in lent:
            continue
        same = own.shape == values.shape and own.dtype == values.dtype
        storage = own.untyped_storage()
        alone = _users(storage) == ONE_USER and storage.nbytes() == own.numel() * own.element_size()
        if same and alone:
            lent[id(own)] = _Lent(own, own.stride(), own.device)
            own.data = values
    return list(lent.values())
