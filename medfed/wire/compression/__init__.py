"""How an update is made smaller before it is sent: one file per method, named after it.

To add one, write `wire/compression/<name>.py` with a `Compression` record tagged `<name>`, or a `Tensorwise`
one if it encodes each tensor by itself; the contract test finds it. `compress` and `decompress` apply a list
of them in turn (`[top_k, int8]` sends the largest values, one byte each) with error feedback: what one
round's rounding lost is added to the next round's delta, so it is delayed and not lost. Seide et al.,
Interspeech 2014; Karimireddy et al., ICML 2019, arXiv:1901.09847.
"""

from medfed.wire.compression._compression import Compression, State
from medfed.wire.compression._stack import compress, compress_update, decompress, decompress_update
from medfed.wire.update import Encoded

__all__ = [
    "Compression",
    "Encoded",
    "State",
    "compress",
    "compress_update",
    "decompress",
    "decompress_update",
]
