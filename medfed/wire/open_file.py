"""An open safetensors file, from which tensors are read one at a time."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medfed.errors import WireError


class OpenFile:
    """A safetensors file that stays open as long as one of its tensors may be read.

    The file is read and not mapped: a mapped file counts towards a process's memory until the system reclaims
    it, and a hub that merges eight files of 400 MB would seem to need all of them, and in a container with a
    memory limit would really need them.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        with _opening:
            _opened.add(self)
        self._start = 8 + int.from_bytes(os.pread(self._handle, 8, 0), "little")

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Return the bytes of the tensor of this name, from `first` to `last` after the header."""
        raw = _aligned_bytes(last - first)
        view, done = raw.numpy().data, 0
        while done < last - first:
            # One call reads at most 2 GiB.
            read = os.preadv(self._handle, [view[done:]], self._start + first + done)
            if read == 0:
                raise WireError(f"'{name}' is truncated: the file became shorter after it was checked")
            done += read
        return raw

    def is_at(self, path: Path) -> bool:
        """Return whether this is the file that is at a path now."""
        return path.exists() and os.path.samestat(os.fstat(self._handle), path.stat())


_opened: weakref.WeakSet[OpenFile] = weakref.WeakSet()
# Sites of one process open files in threads, while another one asks which are open.
_opening = threading.Lock()


def may_be_read(path: Path) -> bool:
    """Return whether this process may still read a tensor of the file at a path."""
    with _opening:
        opened = list(_opened)
    return any(file.is_at(path) for file in opened)


# The alignment of a tensor's memory in torch, for the processor's widest loads.
_ALIGNMENT_BYTES = 64


def _aligned_bytes(size: int) -> Tensor:
    """Return an aligned buffer of that many bytes, in memory that is reused once it is freed.

    torch allocates aligned memory, and glibc does not fit an aligned request into a freed block of the same
    size: a hub that loaded tensors beside the model it was building grew by a whole model for nothing.
    """
    whole = torch.from_numpy(np.empty(size + _ALIGNMENT_BYTES, np.uint8))
    first = -whole.data_ptr() % _ALIGNMENT_BYTES
    return whole[first : first + size]
