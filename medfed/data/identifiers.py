"""Columns of a hospital's table that say who a row is about: ids, names, dates, free text.

Such a column is recognised by its heading or by its cells. It never becomes a feature, and one that holds ids
of patients keeps the rows of a patient together. To recognise another heading, add it to `_HEADINGS`: letters
and digits alone, in lower case.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

Kind = Literal["patient", "row", "birth", "name", "date", "unique"]

# What a message says of each kind.
MEANINGS: Mapping[Kind, str] = {
    "patient": "ids of patients",
    "row": "ids of cases or rows",
    "birth": "dates of birth",
    "name": "names or addresses",
    "date": "dates",
    "unique": "values that nearly every row has alone (ids, names or free text)",
}

_HEADINGS: Mapping[Kind, str] = {
    "patient": "patient patientid patid patientno patientnr patientnumber patientkey patientcode patientuid "
    "patienthash patientname pid mrn medicalrecordnumber medicalrecord medrecno subject subjectid subjectno "
    "subjectnr subjectnumber subjectcode subjid usubjid participant participantid participantno "
    "participantnumber personid person recordid record hospitalnumber hospitalno nhsnumber nhsno ssn "
    "socialsecuritynumber nationalid personalid personnummer cprnumber cpr bsn patientnummer patientennummer "
    "patientenid patientin patientennr idpatient idpaciente paciente numpatient numeropatient ipp unosid "
    "empi masterpatientindex mpi deidentifiedid pseudonym pseudonymid studyid enrollmentid enrolmentid "
    "pnr insurancenumber versichertennummer kvnr ahvnummer svnr insee nir dni nif codicefiscale cpf aadhaar",
    "row": "case caseid caseno casenr casenumber fallnummer fallnr fallid accession accessionnumber "
    "accessionno visitid encounterid "
    "encounter episodeid admissionid hadmid stayid icustayid sampleid sample specimenid "
    "specimen studyinstanceuid seriesinstanceuid sopinstanceuid examid scanid imageid id ids identifier uid "
    "uuid guid rowid row rowno rownumber index unnamed0 nr no lfdnr",
    "birth": "dob birthdate dateofbirth birthday birthyear yearofbirth yob geburtsdatum geburtstag gebdatum "
    "geburtsjahr patientbirthdate datenaissance fechanacimiento jahrgang gebjahr born birth geboren "
    "anneenaissance naissance nacimiento annonascita",
    "name": "name names fullname firstname lastname surname givenname familyname forename middlename vorname "
    "nachname nom prenom nombre apellido apellidos address adresse street strasse city town zip zipcode "
    "postcode postalcode plz phone phonenumber telephone telefon email mail initials physician doctor "
    "referringphysician operator",
}
_KIND_OF: Mapping[str, Kind] = {word: kind for kind, words in _HEADINGS.items() for word in words.split()}
# A heading that ends with one of these words, such as 'tumour_bank_id', holds ids.
_ID_ENDINGS = frozenset({"id", "ids", "mrn", "uid", "uuid", "guid", "ssn", "identifier", "pseudonym"})
_DATE_WORDS = frozenset({"date", "datum", "datetime", "timestamp"})
# Headings that are plain words, too: a study that lists one as a feature may mean something else.
_AMBIGUOUS = frozenset({"case", "sample", "record", "row", "no", "nr", "index", "city", "town", "encounter"})

# A column is an identifier by its cells if at least this share of them differ, and there are this many.
UNIQUE_SHARE = 0.95
MIN_CELLS = 10
# Words differ less where patients have several rows: above this share a column is a text and not a category.
UNIQUE_WORDS_SHARE = 0.5
# Numbers that nearly every row has alone are ids if they are whole, equally long and at least this long.
ID_DIGITS = 5
# Row numbers leave few gaps between the smallest and the largest.
RUNNING_SHARE = 0.9
# Cells of a column of dates that may be something else, such as 'unknown'.
OTHER_SHARE = 0.1
# More words than this in a cell, on average, are a text.
WORDS_OF_A_TEXT = 4

# Cells in place of an id that tell no patients apart.
PLACEHOLDERS = frozenset(
    {"", "?", "-", "--", ".", "na", "n/a", "nan", "null", "none", "unknown", "anonymous", "anonymized",
     "anonymised", "anon", "xxx", "removed", "unbekannt"}
)  # fmt: skip

_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})|\d{1,2}[- ][A-Za-z]{3}[- ]\d{2,4})"
    r"([T ]\d{1,2}:\d{2}.*)?"
)
# A date as DICOM writes it.
_COMPACT_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_WHOLE = re.compile(r"[+-]?([0-9]+)([.,]0*)?")
_NOT_A_LETTER = re.compile(r"[\W_]+")


@lru_cache(maxsize=4096)
def kind_by_heading(heading: str) -> Kind | None:
    """Return what a heading says that its column identifies, or None.

    >>> kind_by_heading("Patient ID"), kind_by_heading("acid"), kind_by_heading("patient_age")
    ('patient', None, None)
    """
    words = [word for word in _NOT_A_LETTER.split(heading.lower()) if word]
    kind = _KIND_OF.get("".join(words))
    if kind is None and words and words[-1] in _ID_ENDINGS:
        kind = "row"
    if kind is None and _DATE_WORDS.intersection(words):
        kind = "date"
    return kind


def patient_key(text: str) -> str:
    """Return a patient's id as ids are compared: two that look alike to a person are of one patient.

    A Mac writes an accent apart from its letter, and pasted cells hold spaces that do not break and marks
    that nobody sees; such a row would be a patient of its own, perhaps in another split.

    >>> patient_key("Mu\\u0308ller\\u00a0\\u200b 1") == patient_key("M\\u00fcller 1")
    True
    """
    seen = "".join(one for one in text if unicodedata.category(one) != "Cf")
    return " ".join(unicodedata.normalize("NFC", seen).split()) or text


def is_unmistakable(heading: str) -> bool:
    """Whether a heading can only be that of an identifier, so that no study may learn from it."""
    word = _NOT_A_LETTER.sub("", heading.lower())
    return word in _KIND_OF and word not in _AMBIGUOUS


def shown_heading(heading: str, position: int) -> str:
    """Return how a message names an identifier's column: by a heading of the list, else by its position.

    The heading of an identifier may itself hold a name, but a word of the list does not.
    """
    known = _NOT_A_LETTER.sub("", heading.lower()) in _KIND_OF
    return heading if known else str(position)


def kind_by_cells(cells: Iterable[str]) -> Kind | None:
    """Return what a column's cells identify, or None for a column of measurements or categories."""
    filled = [cell for cell in cells if cell.lower() not in PLACEHOLDERS]
    if not filled:
        return None
    if not any(_is_word(cell) for cell in filled):
        return kind_by_numbers(filled)
    dates = sum(is_date(cell) for cell in filled)
    if dates >= (1 - OTHER_SHARE) * len(filled):
        return "date"
    share = len(set(filled)) / len(filled)
    words = [cell for cell in filled if _is_word(cell)]
    if 2 * len(words) < len(filled):
        return None
    spaces = sum(cell.count(" ") for cell in words) / len(words)
    if len(filled) >= MIN_CELLS and (
        share > UNIQUE_WORDS_SHARE or (share > 0.2 and spaces >= WORDS_OF_A_TEXT)
    ):
        return "unique"
    return None


def kind_by_numbers(filled: Sequence[str]) -> Kind | None:
    """Return what a column of numbers identifies: compact dates, long ids or running numbers, or None.

    >>> kind_by_numbers(["19410703", "1952-01-09"]), kind_by_numbers(["19410703.0", "1.9520109e7"])
    (None, 'date')
    """
    numbers = [digits for cell in filled if (digits := _digits(cell))]
    if not filled or len(numbers) < len(filled):
        return None
    if sum(is_date(number) for number in numbers) >= (1 - OTHER_SHARE) * len(numbers):
        return "date"
    return "unique" if len(numbers) >= MIN_CELLS and _are_ids(numbers) else None


def _digits(cell: str) -> str:
    """Return the digits of a whole number, or ''.

    An export over a spreadsheet or pandas writes the id 123456 as 123456.0 or 1.23456e5.
    """
    if match := _WHOLE.fullmatch(cell):
        return match[1]
    try:
        value = float(cell) if "e" in cell.lower() else math.nan
    except ValueError:
        return ""
    return str(abs(int(value))) if value.is_integer() else ""


def is_date(cell: str) -> bool:
    """Whether a cell is a date, as spreadsheets, ISO 8601 or DICOM write it."""
    return bool(_DATE.fullmatch(cell) or _COMPACT_DATE.fullmatch(cell))


def _is_word(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return True
    return False


def _are_ids(numbers: Sequence[str]) -> bool:
    """Whether whole numbers are nearly unique, and long ids or running numbers and no measurements."""
    if len(set(numbers)) < UNIQUE_SHARE * len(numbers):
        return False
    lengths = Counter(map(len, numbers))
    if lengths.most_common(1)[0][1] >= UNIQUE_SHARE * len(numbers) and min(lengths) >= ID_DIGITS:
        return True
    values = sorted(map(int, set(numbers)))
    return values[0] in (0, 1) and len(values) >= RUNNING_SHARE * (values[-1] - values[0] + 1)
