"""Privacy mechanisms, one per file: they protect an update at the site and reveal it at the hub.

To add one, write `privacy/<name>.py` with a `Privacy` record tagged `<name>`; the contract test finds it. Its
docstring states what it protects, from whom, and at what cost. `accounting/` computes and records epsilon,
`attacks/` measures what an update leaks.
"""

from medfed.privacy._privacy import GROUP, Privacy, PrivacyState, RoundSession, UpdateProtector, split_state
from medfed.privacy.none import NoPrivacy

__all__ = ["GROUP", "NoPrivacy", "Privacy", "PrivacyState", "RoundSession", "UpdateProtector", "split_state"]
