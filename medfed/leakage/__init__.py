"""What an update tells about the cases behind it: a hospital attacks its own before anything leaves.

    seen.py        what the hub would see of a training, taken from the very bytes that the exchange carries
    inversion.py   from an update back to the images or rows that made it
    membership.py  whether a patient was among the training cases
    local.py       the audit of one hospital: runs these on its own cases, in words and in a picture that stay there

To add an attack, add a file with a function from what the hub sees to a number between 0 (nothing) and 1 (everything).
"""

from medfed.leakage.inversion import invert, recovered
from medfed.leakage.membership import advantage, auc, lira

__all__ = ["advantage", "auc", "invert", "lira", "recovered"]
