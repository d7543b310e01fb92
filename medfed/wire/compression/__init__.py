"""How an update is made smaller before it is sent: one file per method, named after it.

To add one, write `wire/compression/<name>.py` with a `Compression` record tagged `<name>`, or a `Tensorwise`
one if it encodes each tensor by itself; the contract test finds it. `compress` and `decompress` apply a list
of them in turn (`[top_k, int8]` sends the largest values, one byte each) with error feedback: what one
round's rounding lost is added to the next round's delta, so it is delayed and not lost. Seide et al.,
Interspeech 2014; Karimireddy et al., ICML 2019, arXiv:1901.09847.

What one needs, inside medfed or outside:

- `Tensorwise` encodes and decodes each tensor by itself: write `encode_tensor` and `decode_tensor`, whose
  `Parts` read and check what was received. `Blockwise` quantises to integers with a scale per block.
- A `Compression` that looks at all tensors together uses `flatten` and `tensor_shapes` to encode, and
  `decode_each` or `header_shapes` and `check_finite` to decode.
"""

from medfed.wire.compression._compression import (
    Compression,
    Parts,
    State,
    check_finite,
    decode_each,
    flatten,
    header_shapes,
    tensor_shapes,
)
from medfed.wire.compression._stack import compress, compress_update, decompress, decompress_update
from medfed.wire.compression._tensorwise import Blockwise, Tensorwise
from medfed.wire.update import Encoded

__all__ = [
    "Blockwise",
    "Compression",
    "Encoded",
    "Parts",
    "State",
    "Tensorwise",
    "check_finite",
    "compress",
    "compress_update",
    "decode_each",
    "decompress",
    "decompress_update",
    "flatten",
    "header_shapes",
    "tensor_shapes",
]
