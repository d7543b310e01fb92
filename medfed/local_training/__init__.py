"""Methods that change training inside a site: one file per method, named after it.

To add one, write `local_training/<name>.py` with a `LocalMethod` record tagged `<name>`; the contract
test finds it. The federated callback calls its methods at the points that `LocalMethod` lists; state goes
in and comes out.
"""

from medfed.local_training._local import LocalMethod, LocalState

__all__ = ["LocalMethod", "LocalState"]
