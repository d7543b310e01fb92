"""Which parts of a study bear hospitals that join after its first round."""

from __future__ import annotations

from collections.abc import Iterator

from medfed.aggregation import Rule
from medfed.privacy import Privacy
from medfed.registry import kind_of


def joining_refusals(privacy: Privacy, rule: Rule) -> Iterator[str]:
    """Yield which parts of a study do not bear sites that join while it runs, and why."""
    if not privacy.reveals_each_update:
        yield (
            f"privacy '{kind_of(privacy)}' hides updates in a sum over hospitals that each of them agreed to "
            "by name, and one that joins is none of those; take privacy 'none', 'dp_sgd' or 'client_dp' at "
            "the hub, or name every site beforehand"
        )
    if hasattr(rule, "sites"):
        yield (
            f"rule '{kind_of(rule)}' carries a sum over a fixed number of sites from round to round, which "
            "would be wrong after one has joined; take another rule, such as fedavg, or name every site "
            "beforehand"
        )
