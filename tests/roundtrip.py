"""Numbers that go through a compression of single tensors and back."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from medfed.wire.compression import Compression

floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def decoded(compression: Compression, values: list[float]) -> np.ndarray:
    tensors = {"w": torch.tensor(values, dtype=torch.float32)}
    return compression.decode(compression.encode(tensors, {})[0])["w"].numpy().astype(np.float64)
