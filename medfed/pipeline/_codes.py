"""Whether a column's numbers are codes, such as 1 to 4 for kinds of pain, and not amounts."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A column with more different numbers than this is an amount.
MAX_CODES = 8

# Words in headings of codes, whatever their numbers are.
_CODES = """
    type kind code category cat class group sex gender race ethnicity cp thal restecg ecg status
    site location centre center region histology morphology marital smoking blood rhesus side
    laterality protocol scanner modality diagnosis treatment therapy arm
"""
CODE_WORDS = frozenset(_CODES.split())
# Words in headings of counts, grades and amounts, which are in order.
_ORDERED = """
    num number count n no grade stage score level degree performance ecog asa nyha gleason birads
    pirads age year years month months day days week weeks vessels nodes lesions parity gravida
    children pregnancies cycles lines dose rate pressure weight height index size ca
"""
ORDERED_WORDS = frozenset(_ORDERED.split())


def are_codes(name: str, values: Sequence[float]) -> bool:
    """Whether numbers (different ones, in order) are probably codes.

    They are if the heading says so, or if they are a few whole numbers that neither count from 0 nor have a
    heading of counts or grades. Two numbers are never: as an amount or as a category they say the same.

    >>> are_codes("chest_pain", [1, 2, 3, 4]), are_codes("vessels", [0, 1, 2, 3])
    (True, False)
    """
    if not 3 <= len(values) <= MAX_CODES or not all(float(value).is_integer() for value in values):
        return False
    words = set(re.split(r"[\W_\d]+", name.lower()))
    if words & CODE_WORDS:
        return True
    counts = list(values) == list(range(len(values)))
    return not (words & ORDERED_WORDS or counts)
