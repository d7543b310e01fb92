"""How an update is made smaller before it is sent: one file a method, named after it.

To add one, write `wire/compression/<name>.py` with a `Compression` record tagged `<name>`; the contract test
in tests/contracts finds it. `compress` and `restore` apply a list of them one after the other (`[top_k,
int8]` sends the largest values, each in a byte) and feed back the error: what one round's rounding left out
is added to the next round's delta, so that nothing is lost but time. Seide et al., Interspeech 2014;
Karimireddy et al., ICML 2019, arXiv:1901.09847.
"""

from medfed.wire.compression._compression import Compression, Encoded, State
from medfed.wire.compression._pack import pack, unpack
from medfed.wire.compression._stack import compress, restore

__all__ = ["Compression", "Encoded", "State", "compress", "pack", "restore", "unpack"]
