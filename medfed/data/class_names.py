"""Which class of a study a structure of a label is: decided by its name, never by a number that has one.

The same organ is segment 1 in one file and segment 2 in the next, so a number says nothing across files. A
study names its classes; a file names its structures (SegmentLabel, ROIName, a mask's own file name), or its
folder names the numbers (dataset.json, dseg.tsv). Names are compared by their words: case, accents, spaces,
underscores and hyphens do not count. Nothing else is equated: that `Leber` is the study's `liver`, or that
`Lung_L` is `left lung`, the hospital says in its site file (`classes: {Leber: liver}`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from medfed.data.refusals import LabelClassesError
from medfed.errors import DataError

# nnU-Net's name for voxels that nobody labelled; they are neither a class nor background.
IGNORE = "ignore"
# Class numbers are stored in at most 16 bits by the formats that predictions are written in.
MAX_CLASSES = 1 << 16
BACKGROUND = "background"

_ACCENTS = re.compile("[\u0300-\u036f]")
# Spaces, underscores, and hyphens in all their widths.
_SEPARATORS = re.compile("[\\s_\u2010-\u2015\\-]+")


class Structure(NamedTuple):
    """A structure as its file describes it: its number, its name, and the meaning of its code (or '').

    `empty` is true of a structure of a template that nobody drew: it says nothing of the patient.
    """

    number: int
    name: str
    meaning: str = ""
    empty: bool = False


def words_of(name: str) -> str:
    """Return what of a name is compared.

    >>> words_of("Rein-Gauche_1") == words_of(" rein gauche 1") and words_of("Fémur") == words_of("femur")
    True
    """
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", name))
    return _SEPARATORS.sub(" ", plain.casefold()).strip()


@dataclass(frozen=True)
class ClassNames:
    """A study's classes, background first, and what a hospital says of its own words and numbers.

    `words` maps the hospital's own words to classes of the study; a word may also be mapped to `background`,
    which leaves its structure out. A word that is a number says what this number means where nothing in the
    files names it. `numbers` is what the folder itself says the numbers of its labels mean. `expected` are
    the classes that this hospital labels, all of the foreground if empty.

    Raises:
        DataError: if two classes, or two words with different classes, cannot be told apart by their words.
    """

    classes: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[int, str] = field(default_factory=dict)
    expected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) > MAX_CLASSES:
            raise DataError(
                f"task.classes names {len(self.classes)} classes, at most {MAX_CLASSES} can be told apart "
                "in a label; name fewer"
            )
        seen: dict[str, str] = {}
        for name in self.classes:
            other = seen.setdefault(words_of(name), name)
            if other != name:
                raise DataError(
                    f"task.classes: '{other}' and '{name}' have the same words (case, accents, spaces, "
                    "underscores and hyphens do not count); a label's names could not tell them apart"
                )
        self._check_words()

    def _check_words(self) -> None:
        seen: dict[str, str] = {}
        for word, name in self.words.items():
            other = seen.setdefault(words_of(word), words_of(name))
            if other != words_of(name):
                raise DataError(
                    "classes: two words that differ only in case, accents, spaces, underscores or hyphens "
                    "are mapped to different classes; keep one"
                )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def unknown(self) -> int:
        """How many of the hospital's words are mapped to what is no class of this study."""
        return sum(self._class_number(name) is None for name in self.words.values())

    @property
    def meanings(self) -> dict[int, str]:
        """What the numbers of labels without names mean, as the site or else the folder says; or empty."""
        own = {int(word): name for word, name in self.words.items() if word.strip().isdecimal()}
        return {**self.numbers, **own}

    def class_of_name(self, name: str) -> int | None:
        """Return the number of the class that a name means, or None if it means none of the study's."""
        return self._by_words(name) if self._says(name) else self._class_number(name)

    def class_of(self, structure: Structure) -> int | None:
        """Return the number of a structure's class, or None; the hospital's own words decide first.

        Raises:
            LabelClassesError: if its name means one class and its coded meaning another.
        """
        if self._says(structure.name):
            return self._by_words(structure.name)
        if structure.meaning and self._says(structure.meaning):
            return self._by_words(structure.meaning)
        by_name, by_code = self._class_number(structure.name), self._class_number(structure.meaning)
        if by_name is not None and by_code is not None and by_name != by_code:
            called, coded = self.classes[by_name], self.classes[by_code]
            raise LabelClassesError(
                f"segment {structure.number} is called '{called}' by its label and '{coded}' by its code; "
                f"say in the site file which is right: classes: {{{called}: {called}}} or "
                f"{{{called}: {coded}}}"
            )
        return by_code if by_name is None else by_name

    def class_of_number(self, number: int) -> int | None:
        """Return the class of a label's number that the folder or the site names, or None if it matches none.

        Raises:
            LabelClassesError: if it is not named, or is nnU-Net's `ignore`.
        """
        meanings = self.meanings
        if number not in meanings:
            if number == 0:
                return 0
            raise LabelClassesError(
                f"the label holds the value {number}, which the folder's list of labels does not name; "
                f"name it there, or say in the site file what it means, such as classes: {{{number}: "
                f"{self.classes[-1]}}}"
            )
        name = meanings[number]
        if words_of(name) == IGNORE and not self._says(name) and self._class_number(name) is None:
            raise LabelClassesError(
                f"the label holds voxels of value {number}, which its folder calls '{IGNORE}': nobody "
                "labelled them, so they are neither a class nor background; label them, leave this case "
                f"out, or count them as background by classes: {{{IGNORE}: {BACKGROUND}}} in the site file"
            )
        return self.class_of_name(name)

    def _says(self, name: str) -> bool:
        return any(words_of(word) == words_of(name) for word in self.words)

    def _by_words(self, name: str) -> int | None:
        wanted = words_of(name)
        return next(self._class_number(own) for word, own in self.words.items() if words_of(word) == wanted)

    def _class_number(self, name: str) -> int | None:
        wanted = words_of(name)
        if not wanted:
            return None
        for number, own in enumerate(self.classes):
            if words_of(own) == wanted:
                return number
        return 0 if wanted == BACKGROUND else None


def in_words(words: Mapping[str | int, str]) -> dict[str, str]:
    """Return a hospital's words as texts: YAML reads a bare number as a number."""
    return {str(word): name for word, name in words.items()}


# What a reader may be told of a task's classes: their names, only how many there are, or nothing.
Classes = ClassNames | int | None


def count_of(classes: Classes) -> int | None:
    """Return how many classes there are, or None if that is not known."""
    return len(classes) if isinstance(classes, ClassNames) else classes
