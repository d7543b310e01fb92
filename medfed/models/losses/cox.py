"""Cox's partial likelihood for survival: Cox, JRSS B 1972; ties as Breslow 1974 or Efron 1977."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medfed.models.losses._loss import Loss

if TYPE_CHECKING:
    from torch import Tensor


class Cox(Loss, tag="cox", frozen=True):
    """Negative log of Cox's partial likelihood within a batch.

    The patients at risk at an event are those of the batch with the same or a later time, so a larger batch
    compares each patient with more others. `ties` decides how simultaneous events share their risk set. The
    sum is divided by the batch's number of events, or with `per: examples`, as in FLamby, by its patients. A
    batch without an event has loss 0.
    """

    serves = ("survival",)

    ties: Literal["efron", "breslow"] = "efron"
    per: Literal["events", "examples"] = "events"

    def outputs(self, classes: int) -> int:
        return 1

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of log risks (B, 1) and targets (B, 2) of time and event."""
        import torch

        order = target[:, 0].argsort(descending=True, stable=True)
        risk = logits[order, 0]
        event = target[order, 1].to(risk.dtype)
        # Patients of one time are a group; in this order all up to the group's last one are at risk at its
        # time.
        _, group, sizes = torch.unique_consecutive(target[order, 0], return_inverse=True, return_counts=True)
        at_risk = risk.logcumsumexp(0)[sizes.cumsum(0) - 1][group]
        if self.ties == "efron":
            # Of d events at one time, the l-th (from 0) removes l/d of their own risk from the risk set.
            nothing = risk.new_zeros(len(sizes))
            dying = nothing.index_add(0, group, event * (risk - at_risk).exp())[group]
            deaths = nothing.index_add(0, group, event)
            earlier = event.cumsum(0) - event - (deaths.cumsum(0) - deaths)[group]
            left_out = event * earlier / deaths[group].clamp(min=1) * dying
            at_risk = at_risk + torch.log1p(-left_out)
        loss = (event * (at_risk - risk)).sum()
        return loss / (event.sum().clamp(min=1) if self.per == "events" else len(risk))

    @property
    def grows_trees(self) -> bool:
        return True

    def derivatives(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the sum over all events, whatever `per` is; the risk sets are of these patients."""
        import torch

        order = target[:, 0].argsort(descending=True, stable=True)
        weight = (scores[order, 0].double() - scores.max()).exp()  # only ratios count
        event = target[order, 1].to(weight.dtype)
        _, group, sizes = torch.unique_consecutive(target[order, 0], return_inverse=True, return_counts=True)
        last = sizes.cumsum(0) - 1
        nothing = weight.new_zeros(len(sizes))
        dying = nothing.index_add(0, group, event * weight)[group]
        deaths = nothing.index_add(0, group, event)
        # Of d events at one time, the l-th (from 0) has removed l/d of their own risk (Efron).
        earlier = (event.cumsum(0) - event - (deaths.cumsum(0) - deaths)[group]) * (self.ties == "efron")
        removed = event * earlier / deaths[group].clamp(min=1)
        at_risk = weight.cumsum(0)[last][group] - removed * dying

        def of_earlier(each: Tensor) -> tuple[Tensor, Tensor]:
            """Return the sums over events at or before each patient's time, and over those at that time."""
            own = nothing.index_add(0, group, event * each)
            return own.flip(0).cumsum(0).flip(0)[group], own[group] * event

        first, _ = of_earlier(1 / at_risk)
        _, own_first = of_earlier(removed / at_risk)
        second, _ = of_earlier(1 / at_risk**2)
        _, own_second = of_earlier((2 * removed - removed**2) / at_risk**2)
        hazard = weight * (first - own_first)
        gradient = (hazard - event)[:, None]
        hessian = (hazard - weight**2 * (second - own_second))[:, None]
        back = order.argsort()
        return gradient[back], hessian[back].clamp(min=0)
