"""The optimisers of a site's training: one file per optimiser, named after it.

To add one, write `optimisers/<name>.py` with an `Optimiser` record tagged `<name>`; the contract test in
tests/contracts finds it. `train.optimiser_state` decides what happens to its state at a merge.
"""

from medfed.models.optimisers._optimiser import Optimiser

__all__ = ["Optimiser"]
