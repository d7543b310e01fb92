"""What the labels of a hospital name, matched to a study's classes before anything is trained on.

Headers and names are read here, no voxels. A class that no label names, a structure that matches no class,
and a label that names no class at all would all be trained on as background, so each is said. Names of
structures are the hospital's own: they go into its own note, and messages hold the study's names and counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medfed.data.case import Case
from medfed.data.class_names import Classes, ClassNames, Structure, words_of
from medfed.data.dicom.structures import find_label_object, structures_of
from medfed.data.index import Index, LabelsBy
from medfed.data.nrrd import segment_names
from medfed.data.own_notes import write_note
from medfed.errors import DataError, ImageError

# The note in which a hospital finds what its labels name, and which class each name was taken for.
NOTE = "structures"
HEADING = ("structure", "coded meaning", "class of the study", "cases")
NUMBERS_ALONE = "nothing here names the numbers in the labels"
REMEDY = "map your own words to the study's in the site file, such as classes: {Leber: liver}"


@dataclass(frozen=True, repr=False)
class NamedCase:
    """A case with a label, and the structures that its files name; None if they hold numbers alone.

    `by_number` says that its label holds numbers, which the folder or the hospital names.
    """

    case: Case
    structures: tuple[Structure, ...] | None
    by_number: bool = False


@dataclass(frozen=True, repr=False)
class LabelSurvey:
    """The cases of a hospital that have a label, by whether something names what is in it."""

    naming: ClassNames
    named: tuple[NamedCase, ...]
    numbered: tuple[NamedCase, ...]

    @property
    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The rows of the hospital's own note: every name, its class (empty if none) and how many cases."""
        counts = Counter((one.name, one.meaning) for each in self.named for one in set(each.structures or ()))
        for (name, meaning), cases in sorted(counts.items()):
            number = _class_or_none(self.naming, Structure(0, name, meaning))
            yield name, meaning, "" if number is None else self.naming.classes[number], str(cases)


def match_classes(index: Index, classes: Classes, needs: str, site_secret: bytes) -> tuple[Index, Classes]:
    """Return an index and the task's classes, matched by their names if the task names them."""
    if not isinstance(classes, ClassNames):
        return index, classes
    if needs == "segment":
        return match_labels(index, classes, site_secret)
    return (match_targets(index, classes) if needs == "classify" else index), classes


def match_labels(index: Index, naming: ClassNames, site_secret: bytes) -> tuple[Index, ClassNames]:
    """Return a hospital's index and the naming of its labels, with what was matched in the index's notes.

    A label that names no class of the study does not count as one: its case stays without a label.

    Raises:
        DataError: if some labels name their structures and others hold numbers without names, or no label
            names a class of the study.
    """
    naming = replace(naming, numbers=dict(index.label_names))
    survey = survey_labels(index.cases, naming)
    if not survey.named and not survey.numbered:
        return index, naming
    refuse_mixture(survey)
    if not survey.named:
        notes = (*index.notes, _numbers_alone(naming))
        # With one class besides the background, a number can stand for no other class of the study.
        return replace(index, notes=notes, labels_by="numbers" if len(naming) > 2 else ""), naming
    classes = {one.case.token: _classes_of(one, naming) for one in survey.named}
    spoken = {token for token, numbers in classes.items() if numbers}
    where = write_names(index.folder, site_secret, survey) if any(not row[2] for row in survey.rows) else ""
    if not spoken:
        raise DataError(
            f"none of {len(survey.named)} labels names a class of the study "
            f"({', '.join(naming.classes[1:])}); {REMEDY}; {where or 'the labels name no structure'}"
        )
    cases = tuple(
        replace(case, label=None, masks=()) if case.token in classes.keys() - spoken else case
        for case in index.cases
    )
    notes = (*index.notes, *_left_out_notes(survey, where), *_class_notes(survey, classes))
    return replace(index, cases=cases, notes=notes, labels_by=_named_by(survey)), naming


def match_targets(index: Index, naming: ClassNames) -> Index:
    """Return an index whose targets are numbers of the study's classes, where the folder names its own.

    A case of a folder that is named after no class of the study stays without a target.

    Raises:
        DataError: if no folder is named after a class of the study.
    """
    if not index.class_names:
        return index
    numbers = [naming.class_of_name(name) for name in index.class_names]
    if all(number is None for number in numbers):
        raise DataError(
            f"none of the folder's {len(numbers)} classes is one of the study "
            f"({', '.join(naming.classes)}); rename the folders, or {REMEDY}"
        )
    cases = tuple(
        case if case.target is None else replace(case, target=numbers[case.target]) for case in index.cases
    )
    unmatched = sum(number is None for number in numbers)
    notes = index.notes
    if unmatched:
        lost = sum(new.target is None is not old.target for new, old in zip(cases, index.cases, strict=True))
        notes += (
            f"{unmatched} of the folder's {len(numbers)} classes match no class of the study; their {lost} "
            "cases count as without a target",
        )
    missing = [name for number, name in enumerate(naming.classes) if number not in numbers]
    if missing:
        notes += (f"no folder here is named after the study's {_quoted(missing)}",)
    return replace(index, cases=cases, notes=notes, class_names=naming.classes)


def survey_labels(cases: Sequence[Case], naming: ClassNames) -> LabelSurvey:
    """Return what names the structures in the labels of some cases; a file that is damaged is passed over.

    The reader refuses such a file, and then says why.
    """
    named, numbered = [], []
    for case in cases:
        try:
            found = _named_case(case, naming)
        except (ImageError, OSError):
            continue
        if found.structures is not None:
            named.append(found)
        elif case.label is not None or case.masks:
            numbered.append(found)
    return LabelSurvey(naming, tuple(named), tuple(numbered))


def _named_case(case: Case, naming: ClassNames) -> NamedCase:
    """Return a case with the structures that its files name, or else with what its label's numbers mean."""
    structures = _structures_in(case)
    if structures is not None or case.label is None or not naming.meanings:
        return NamedCase(case, structures)
    return NamedCase(case, tuple(Structure(number, name) for number, name in naming.meanings.items()), True)


def _structures_in(case: Case) -> tuple[Structure, ...] | None:
    if case.masks:
        own = [Structure(0, name) for name, _ in case.masks if name]
        return (*own, *(one for name, path in case.masks if not name for one in _of_file(path) or ()))
    if case.label is None:
        return None
    structures = _of_file(case.label)
    if structures is not None and any(one.name or one.meaning for one in structures):
        return tuple(one for one in structures if not one.empty)
    return None


def _of_file(path: Path) -> tuple[Structure, ...] | None:
    """Return the structures that a file describes, or None if it is an image of numbers."""
    segments = segment_names(path)
    if segments:
        return tuple(Structure(number, name) for number, name in segments)
    found = find_label_object(path)
    return None if found is None else structures_of(found)


def refuse_mixture(survey: LabelSurvey) -> None:
    """Raise if some labels name their structures and others hold numbers that nothing names.

    Raises:
        DataError: with their counts and a case's token.
    """
    if survey.named and survey.numbered:
        example = survey.naming.classes[1] if len(survey.naming) > 1 else "liver"
        total = len(survey.named) + len(survey.numbered)
        raise DataError(
            f"{len(survey.named)} of {total} labels name their structures and {len(survey.numbered)} hold "
            f"numbers that nothing names (the first: case {survey.numbered[0].case.token}), so a number may "
            "mean something else there; say in the site file what it means, such as classes: "
            f"{{1: {example}}}, or convert these labels"
        )


def _named_by(survey: LabelSurvey) -> LabelsBy:
    """Return whether a hospital's files name its structures, or only its own word says what numbers mean."""
    by_hospital = not survey.naming.numbers and all(one.by_number for one in survey.named)
    return "stated" if by_hospital else "names"


def different_labels(labels_by: Mapping[str, str]) -> str:
    """Return why a number may mean one class at one site and another at the next; '' if that is excluded.

    `labels_by` is `Index.labels_by` of each site. What a hospital states of its numbers contradicts nobody's.
    """
    named, numbered = (
        sorted(site for site, by in labels_by.items() if by == word) for word in ("names", "numbers")
    )
    if not named or not numbered:
        return ""
    return (
        f"the labels of {', '.join(named)} name their structures, and those of {', '.join(numbered)} hold "
        "numbers that nothing names, so a number may mean another class there; say what each means in the "
        "site file (in a simulation under site_overrides), such as classes: {1: liver}, or in dataset.json"
    )


def _numbers_alone(naming: ClassNames) -> str:
    pairs = ", ".join(f"{number} {name}" for number, name in enumerate(naming.classes[1:4], start=1))
    more = ", ..." if len(naming.classes) > 4 else ""
    return f"{NUMBERS_ALONE}; they were taken for the study's: {pairs}{more}"


def _classes_of(named: NamedCase, naming: ClassNames) -> set[int]:
    """Return the classes that a case's label names, the background included."""
    numbers = (_class_or_none(naming, one) for one in named.structures or ())
    return {number for number in numbers if number is not None}


def _class_or_none(naming: ClassNames, structure: Structure) -> int | None:
    try:
        return naming.class_of(structure)
    except ImageError:  # its name and its code disagree: the reader refuses the case
        return naming.class_of_name(structure.name)


def _left_out_notes(survey: LabelSurvey, where: str) -> Iterator[str]:
    left_out = {words_of(name or meaning) for name, meaning, target, _ in survey.rows if not target}
    if left_out:
        yield (
            f"{len(left_out)} structures that the labels name match no class of the study and are left out; "
            f"if one of them is a class under another word, {REMEDY}; {where}"
        )
    merged: dict[int, int] = defaultdict(int)
    for each in survey.named:
        counts = Counter(_class_or_none(survey.naming, one) for one in set(each.structures or ()))
        for number, count in counts.items():
            if number and count > 1:
                merged[number] += 1
    for number, cases in sorted(merged.items()):
        yield f"several structures are united as '{survey.naming.classes[number]}' in {cases} cases"
    if survey.naming.unknown:
        yield (
            f"{survey.naming.unknown} words under `classes` in the site file are mapped to what is no class "
            "of this study"
        )


def _class_notes(survey: LabelSurvey, classes: dict[str, set[int]]) -> Iterator[str]:
    silent = sum(not numbers for numbers in classes.values())
    if silent:
        yield f"{silent} labels name no class of the study, so their cases count as without a label"
    counts = Counter(number for numbers in classes.values() for number in numbers)
    spoken = len(classes) - silent
    expected = survey.naming.expected or survey.naming.classes[1:]
    for name in expected:
        count = counts[survey.naming.classes.index(name)]
        if count == 0:
            yield (
                f"no label here names '{name}'; if it is present but not labelled here, say so in "
                "task.labelled"
            )
        elif count < spoken:
            yield f"'{name}' is named in {count} of {spoken} labels and counts as absent in the others"


def write_names(folder: Path, site_secret: bytes, survey: LabelSurvey) -> str:
    """Write the names into the hospital's own note, and return words that tell where it is."""
    try:
        return f"all names are in {write_note(folder, site_secret, NOTE, HEADING, survey.rows)}"
    except OSError as error:
        return f"their list could not be written (errno {error.errno})"


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
