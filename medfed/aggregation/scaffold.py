"""SCAFFOLD's hub: the mean of the sites' models, and the control variate that corrects all sites' steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning, ICML 2020, arXiv:1910.06378, algorithm 1, lines 16 and 17: x <- x + eta_g mean dy_k, c <- c + |S| /
N mean dc_k. A site sends dc_k, its control variate's change, as the group `control`; the hub publishes c, the
state's group of that name. The sites' part, with both options for dc_k, is local_training/scaffold.py.

Departures. Both means are weighted by examples (the paper's sites count alike), so that the corrections sum
to zero over the sites as they are weighted here. Batch norm's running statistics are averaged and have no
control variate. dc_k may leave out tensors that aren't trained; its names must be the same at all sites.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import part_of, sums, write
from medfed.aggregation._rule import (
    AtLeastOne,
    Positive,
    Rule,
    State,
    by_site,
    carried,
    is_running_statistic,
    newest,
    shares,
    who,
    zeros_for_state,
)
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

CONTROL = "control"


class Scaffold(Rule, frozen=True, tag="scaffold"):
    """Mean of the sites' models, and of the control variates that correct their drift.

    `sites` is how many the whole study has (the paper's N); None says that all of them answer each round.
    """

    learning_rate: Positive = 1.0
    sites: AtLeastOne | None = None

    needs_groups: ClassVar[tuple[str, ...]] = (CONTROL,)
    needs_local: ClassVar[tuple[str, ...]] = ("scaffold",)

    @property
    def broadcast(self) -> tuple[str, ...]:
        return (CONTROL,)

    def init(self, weights: Weights) -> State:
        return {CONTROL: zeros_for_state(weights)}

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        portions = shares(sites)
        control = self._control(sites, portions, carried(state, CONTROL, self))
        merged: dict[str, Tensor] = {}
        factors = [self.learning_rate * share for share in portions]
        for block in sums(sites, factors, weights, statistics=portions):
            write(merged, block, block.model(), sites)
        return merged, {CONTROL: control}

    def _control(self, sites: list[Update], portions: list[float], before: Weights) -> dict[str, Tensor]:
        part = 1.0 if self.sites is None else len(sites) / self.sites
        if part > 1:
            raise RuleError(
                f"scaffold for round {newest(sites)}: {len(sites)} sites answered, the rule says that the "
                f"study has "
                f"{self.sites}; set rule.sites to the number of sites of the study"
            )
        changed = _names(sites, before)
        changes = [Update(u.site, u.round, u.groups[CONTROL], u.examples) for u in sites]
        after: dict[str, Tensor] = {}
        for block in sums(changes, portions, {name: before[name] for name in before if name in changed}):
            write(after, block, part_of(before, block).add_(block.delta(), alpha=part), sites)
        return {name: after[name] if name in after else tensor.clone() for name, tensor in before.items()}


def _names(sites: list[Update], control: Weights) -> set[str]:
    """Return the names of the control variates' changes.

    Raises:
        RuleError: naming the site whose group is missing, or holds other names than the first site's.
    """
    expected: set[str] | None = None
    for update in sites:
        if CONTROL not in update.groups:
            raise RuleError(
                f"{who(update)} has no group '{CONTROL}'; does the site train with local kind scaffold?"
            )
        found = {name for name in update.groups[CONTROL] if not is_running_statistic(name)}
        if unknown := sorted(found - set(control)):
            raise RuleError(f"{who(update)}: '{unknown[0]}' of group '{CONTROL}' is not in the global model")
        expected = found if expected is None else expected
        if found != expected:
            odd = sorted(found ^ expected)[0]
            raise RuleError(f"{who(update)}: '{odd}' of group '{CONTROL}' is not held by all sites alike")
    return expected or set()
