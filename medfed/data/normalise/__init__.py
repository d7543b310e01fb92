"""How a volume's intensities are normalised for the network: one file per kind, named after it.

To add one, write `data/normalise/<name>.py` with a `Normalise` record tagged `<name>`;
tests/contracts/test_normalise.py finds it. Each channel is normalised by itself, from this volume alone: no
number of one patient reaches another.
"""

from medfed.data.normalise._normalise import Normalise

__all__ = ["Normalise"]
