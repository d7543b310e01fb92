"""Methods that change training inside a site: one file per method, named after it.

To add one, write `local_training/<name>.py` with a `LocalMethod` record tagged `<name>`; the contract
test finds it. The federated callback calls its methods at the points that `LocalMethod` lists; state goes
in and comes out.

What one needs, inside medfed or outside:

- `Step` is a batch before the module is trained on it, `TrainEvaluator` evaluates the training cases before a
  round's first step.
- `received_parameters` and `all_weights` copy weights, `to_cpu` and `to_device` move a state, and
  `swapped_weights` lets the module hold other weights for a while; `fork_rng` keeps the random states.
- `gradients`, `add_gradients` and `optimizer_step` train a second, personal model through the same module.
"""

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._personal_model import add_gradients, gradients, optimizer_step
from medfed.local_training._step import Step
from medfed.local_training._train_pass import TrainEvaluator
from medfed.local_training._weights import (
    all_weights,
    fork_rng,
    received_parameters,
    swapped_weights,
    to_cpu,
    to_device,
)

__all__ = [
    "LocalMethod",
    "LocalState",
    "Step",
    "TrainEvaluator",
    "add_gradients",
    "all_weights",
    "fork_rng",
    "gradients",
    "optimizer_step",
    "received_parameters",
    "swapped_weights",
    "to_cpu",
    "to_device",
]
