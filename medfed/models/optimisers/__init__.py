"""How a site's training steps: one file an optimiser, named after it.

To add one, write `optimisers/<name>.py` with an `Optimiser` record tagged `<name>`; the contract test in
tests/contracts finds it. What happens to its state at a merge is the round's business, not the optimiser's.
"""

from medfed.models.optimisers._optimiser import Optimiser

__all__ = ["Optimiser"]
