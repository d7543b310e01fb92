"""What every local method is: a frozen record whose verbs the federated callback calls while a site trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from medfed.kinds import Kind
from medfed.update import Global
from medfed.weights import Weights

# What a method carries through a round and from one to the next: named groups of named tensors.
LocalState = Mapping[str, Weights]


class Local(Kind, frozen=True):
    """What changes training inside a site."""

    folder: ClassVar[str] = "local"

    # Whether its verbs use weights and gradients only and no case, so that what is private before them stays so after.
    needs_no_cases: ClassVar[bool] = False

    # The groups of tensors that `finish` sends beside the weights, for a rule that needs them.
    sends: ClassVar[tuple[str, ...]] = ()

    def start(self, module: nn.Module, received: Global, state: LocalState) -> LocalState:
        """Return the state for a round that begins; the module holds the received weights already."""
        return state

    def loss(self, module: nn.Module, state: LocalState) -> Tensor | None:
        """Return a term to add to the training loss of one step, or None."""
        return None

    def gradient(self, module: nn.Module, state: LocalState) -> None:
        """Change the gradients of one step in place, after they are unscaled and before they are clipped."""

    def finish(
        self, module: nn.Module, received: Global, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        """Return the state and the groups of tensors to send, after `steps` steps at a mean learning rate of `rate`."""
        return state, {}
