"""What changes training inside a site: one file a method, named after it.

To add one, write `local_training/<name>.py` with a `Local` record tagged `<name>`; the contract test finds
it. The federated callback calls its verbs at the places named there; state goes in and comes out.
"""

from medfed.local_training._local import Local, LocalState

__all__ = ["Local", "LocalState"]
