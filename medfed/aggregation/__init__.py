"""How the sites' updates become new weights: one file a rule, named after it.

To add one, write `aggregation/<name>.py` with a `Rule` record tagged `<name>`; the contract test in
tests/contracts finds it. State goes in and comes out: a rule remembers nothing. A merge walks tensor by
tensor over all sites, so it needs about two models of memory however many sites there are, and it takes the
sites by name, so the order in which they answered cannot change a bit of the result. `_walk` is that walk,
`_rule` says what a rule is.
"""

from medfed.aggregation._rule import Rule, State, by_site, shares

__all__ = ["Rule", "State", "by_site", "shares"]
