"""How the sites' updates become new weights: one file per rule, named after it.

To add one, write `aggregation/<name>.py` with a `Rule` record tagged `<name>`; the contract test in
tests/contracts finds it. State goes in and comes out: a rule remembers nothing. A merge reads the updates
tensor by tensor over all sites, so it needs about two models of memory for any number of sites, and it takes
the sites in the order of their names, so the order in which they answered cannot change a bit of the result.

A rule is `Rule.merge`, and these functions write most merges in a few lines (a rule outside
medfed uses them, too):

- `validated_updates` sorts and checks the updates, `shares` weights them by examples, `require_sites` checks
  their number, `required_scalar` and `state_group` read what updates and state must hold.
- `add_weighted_deltas` is a whole merge with one factor per site. `weighted_sum_blocks` yields its float64
  sums block by block, for rules with state (`state_block`); `write_block` rounds a block to the model's
  dtype.
- `stacked_blocks` yields all sites' values as rows, for rules that compare sites, and `squared_norms` the
  squared length of each site's update.

A rule that merges the mean of all updates as it merges the single ones says so by
`supports_secure_aggregation`; without it, a study with secure aggregation refuses the rule.
"""

from medfed.aggregation._reduce import (
    Block,
    add_weighted_deltas,
    squared_norms,
    stacked_blocks,
    weighted_sum_blocks,
    write_block,
)
from medfed.aggregation._rule import Merged, Rule, State, Updates
from medfed.aggregation._state import state_block, state_group
from medfed.aggregation._updates import require_sites, required_scalar, shares, validated_updates

__all__ = [
    "Block",
    "Merged",
    "Rule",
    "State",
    "Updates",
    "add_weighted_deltas",
    "require_sites",
    "required_scalar",
    "shares",
    "squared_norms",
    "stacked_blocks",
    "state_block",
    "state_group",
    "validated_updates",
    "weighted_sum_blocks",
    "write_block",
]
