"""De-identified copies of DICOM folders: PS3.15 Annex E, Basic Profile, by an allow-list.

`deidentify` reads a folder and writes another. `rules.py` lists what may stay, and in which form; an
attribute that is not listed is removed, known or not, public or private, at any depth. The same secret always
gives the same UIDs, pseudonyms and date shifts, so that a later export fits an earlier one; without the
secret none of them can be reversed or found by trying.

Dicom-anonymizer was tried as the base. Its list of the standard's attributes is correct, but it processes the
top level only, keeps what the standard does not list, forgets its UIDs after a run and cannot shift dates.
The tests check this package against its list.
"""

from medfed.data.deidentify.attributes import Options
from medfed.data.deidentify.folder import Deidentified, deidentify

__all__ = ["Deidentified", "Options", "deidentify"]
