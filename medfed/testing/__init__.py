"""Contracts for kinds of your own: `check_rule(MyRule())` raises what the rule breaks.

A contract is the list of checks that medfed's own kinds pass in its tests. None needs pytest. `skip` leaves
out checks by name, for a kind that departs from the contract on purpose. For one test per check:

    @pytest.mark.parametrize("name", check_rule.checks)
    def test_my_rule(name):
        check_rule.checks[name](MyRule())
"""

from medfed.testing._contract import Contract, NotApplicable
from medfed.testing._losses import check_loss
from medfed.testing._networks import check_network
from medfed.testing._optimisers import check_optimiser
from medfed.testing._rules import check_rule
from medfed.testing._schedules import check_schedule
from medfed.testing._tasks import check_task

__all__ = [
    "Contract",
    "NotApplicable",
    "check_loss",
    "check_network",
    "check_optimiser",
    "check_rule",
    "check_schedule",
    "check_task",
]
