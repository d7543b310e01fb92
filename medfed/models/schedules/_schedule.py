"""The base of all schedules: a frozen record that gives the learning rate's factor at an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from medfed.registry import Kind

if TYPE_CHECKING:
    from torch import optim


class Schedule(Kind, frozen=True):
    """The learning rate over a whole run, as a factor on the optimiser's `lr`."""

    folder: ClassVar[str] = "schedules"

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor during `epoch`, counted from 0, of `epochs` over all rounds."""
        raise NotImplementedError

    @final
    def build(self, optimizer: optim.Optimizer, epochs: int) -> optim.lr_scheduler.LRScheduler:
        """Return the torch scheduler, to be stepped once per epoch."""
        from torch.optim.lr_scheduler import LambdaLR

        # A plain function, because LambdaLR saves the attributes of a callable object in the checkpoint, but
        # not of a function. Lightning asks for factor(epochs, epochs) after the last epoch, hence the bound.
        return LambdaLR(optimizer, lambda epoch: self.factor(min(epoch, epochs), epochs))
