"""What training minimises: one file per loss, named after it.

To add one, write `losses/<name>.py` with a `Loss` record tagged `<name>`; the contract test in
tests/contracts finds it. A loss is `value`, a function of logits and target, or `build` returns such a
function. It has no tensors of its own: a loss that registered its class weights as buffers would send them
with every update.
"""

from medfed.models.losses._loss import Criterion, Loss

__all__ = ["Criterion", "Loss"]
