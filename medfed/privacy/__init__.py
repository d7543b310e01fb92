"""What happens to an update before it leaves a hospital, and what the hub undoes: one file a mechanism.

To add one, write `privacy/<name>.py` with a `Privacy` record tagged `<name>`; the contract test finds it. Its
docstring states what it protects, from whom, and at what cost.
"""

from medfed.privacy._privacy import GROUP, Privacy, PrivacyState, RoundSession, UpdateProtector, split_state
from medfed.privacy.none import NoPrivacy

__all__ = ["GROUP", "NoPrivacy", "Privacy", "PrivacyState", "RoundSession", "UpdateProtector", "split_state"]
