"""SCAFFOLD's hub: the mean of the sites' models, and the control variate that corrects all sites' steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning, ICML 2020, arXiv:1910.06378, algorithm 1, lines 16 and 17: x <- x + eta_g mean dy_k, c <- c + |S| /
N mean dc_k. A site sends dc_k, the change of its control variate, as the group `control`; the hub publishes
c, the state's group of that name. The sites' half, with both options for dc_k, is local_training/scaffold.py.

Departures. Both means are weighted by examples (the paper's sites count equally), so that the corrections sum
to zero over the sites as they are weighted here. Batch norm's running statistics are averaged and have no
control variate. dc_k may omit tensors that are not trained; its names must be the same at all sites.
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._reduce import add_weighted_deltas, weighted_sum_blocks, write_block
from medfed.aggregation._rule import AtLeastOne, Merged, Positive, Rule, State, Updates
from medfed.aggregation._state import state_block, state_group, zeros_for_state
from medfed.aggregation._updates import describe, participation, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights, is_running_statistic

CONTROL = "control"


class Scaffold(Rule, frozen=True, tag="scaffold"):
    """Mean of the sites' models, and of the control variates that correct their drift.

    `sites` is the number of sites in the whole study (the paper's N); None means that all answer each round.
    """

    learning_rate: Positive = 1.0
    sites: AtLeastOne | None = None

    needs_groups = (CONTROL,)
    needs_local = ("scaffold",)

    @property
    def broadcast(self) -> tuple[str, ...]:
        return (CONTROL,)

    def init(self, weights: Weights) -> State:
        return {CONTROL: zeros_for_state(weights)}

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        portions = shares(sites)
        control = self._control(sites, portions, state_group(state, CONTROL, self))
        factors = [self.learning_rate * share for share in portions]
        return add_weighted_deltas(sites, factors, weights, statistics=portions), {CONTROL: control}

    def _control(self, sites: list[Update], portions: list[float], before: Weights) -> dict[str, Tensor]:
        answered = participation(sites, self.sites, self)
        changed = _names(sites, before)
        changes = [Update(u.site, u.round, u.groups[CONTROL], u.examples) for u in sites]
        after: dict[str, Tensor] = {}
        shared = {name: tensor for name, tensor in before.items() if name in changed}
        for block in weighted_sum_blocks(changes, portions, shared):
            write_block(after, block, state_block(before, block).add_(block.delta(), alpha=answered), sites)
        return {name: after[name] if name in after else tensor.clone() for name, tensor in before.items()}


def _names(sites: list[Update], control: Weights) -> set[str]:
    """Return the tensor names that all sites' control variates have.

    Raises:
        RuleError: naming the site whose group is missing or has other names than the first site's.
    """
    expected: set[str] | None = None
    for update in sites:
        if CONTROL not in update.groups:
            raise RuleError(
                f"{describe(update)} has no group '{CONTROL}'; does the site train with "
                f"train.local: {{kind: scaffold}}?"
            )
        names = {name for name in update.groups[CONTROL] if not is_running_statistic(name)}
        if unknown := sorted(names - set(control)):
            raise RuleError(
                f"{describe(update)}: '{unknown[0]}' of group '{CONTROL}' is not in the global model"
            )
        expected = names if expected is None else expected
        if names != expected:
            odd = sorted(names ^ expected)[0]
            raise RuleError(
                f"{describe(update)}: '{odd}' of group '{CONTROL}' is not sent by all sites alike"
            )
    return expected or set()
