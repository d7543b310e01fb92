"""Networks whose tensors have shapes and no memory, to count a network that nobody approved yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# What modules make their parameters and buffers with. `torch.device("meta")` diverts `linspace`, too, from
# which MONAI's SwinUNETR reads numbers while it is built.
_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})


class ShapesOnly(TorchFunctionMode):
    """While it is entered, modules are built on the device `meta`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _FACTORIES and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)
