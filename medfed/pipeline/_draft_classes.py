"""The classes of a drafted study: by the names that the hospitals' labels and folders give, or by numbers.

A class is a name. Where every hospital's labels name their structures, a number says nothing; where none
does, numbers must mean the same everywhere; hospitals of both kinds are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medfed.data.class_names import BACKGROUND, IGNORE, words_of
from medfed.data.preflight.preflight import Preflight
from medfed.errors import DataError

Preflights = Mapping[str, Preflight]


def structures(preflights: Preflights) -> tuple[list[str], list[str]]:
    """Return the names of all classes, background first, and a warning for each hospital that lacks one.

    What labels call 'ignore' (voxels that nobody drew) is no class; a warning says where there is some.

    Raises:
        DataError: if no voxel is labelled, or some hospitals name their structures and others only number
            them.
    """
    names, warnings = _structures({site: _present(one) for site, one in preflights.items()})
    return names, [*warnings, *_ignored(preflights)]


def _structures(present: Mapping[str, Mapping[int, str]]) -> tuple[list[str], list[str]]:
    if not any(present.values()):
        raise DataError(
            "no label that can be used marks a structure: each is empty (structures are marked by 1, 2, ...) "
            "or was refused; `medfed check FOLDER` says which, and why"
        )
    named = {site: classes for site, classes in present.items() if classes and all(classes.values())}
    numbered = {site: classes for site, classes in present.items() if classes and not all(classes.values())}
    if not numbered:
        return _by_name(present)
    if not named:
        return _by_number(present)
    names, warnings = _by_name(named)
    if len(names) > 2 or any(set(classes) != {1} for classes in numbered.values()):
        raise DataError(
            f"the labels of {' and '.join(named)} name their structures, those of {' and '.join(numbered)} "
            "hold numbers that nothing names; name these numbers (in a dataset.json, or as masks with the "
            "structures' names), or write the study by hand and map them under site_overrides, such as "
            f"{{{next(iter(numbered))}: {{classes: {{1: {names[1]}}}}}}}"
        )
    warnings.append(
        f"nothing names label 1 of {', '.join(numbered)}; it was taken for '{names[1]}', the only structure "
        "of the others; make sure that it is"
    )
    return names, warnings


def _present(preflight: Preflight) -> dict[int, str]:
    """Return the names ('' if unknown) of the foreground classes that a hospital's labels hold, by number."""
    classes = preflight.facts["classes"]
    return {
        int(number): about["name"]
        for number, about in classes.items()
        if int(number) and words_of(about["name"]) != IGNORE
    }


def _ignored(preflights: Preflights) -> list[str]:
    """Return a warning for each hospital whose labels hold voxels called 'ignore', which training refuses."""
    return [
        f"{site}: the labels hold voxels that are called '{IGNORE}', which is no class: training refuses "
        f"these cases until the hospital says what it is, such as classes: {{{IGNORE}: {BACKGROUND}}} in its "
        "site file (here under site_overrides)"
        for site, one in preflights.items()
        if any(words_of(about["name"]) == IGNORE for about in one.facts["classes"].values())
    ]


def _by_name(present: Mapping[str, Mapping[int, str]]) -> tuple[list[str], list[str]]:
    names: dict[str, str] = {}
    for classes in present.values():
        for _, name in sorted(classes.items()):
            names.setdefault(words_of(name), name)
    names.pop(words_of(BACKGROUND), None)
    warnings = []
    for words, name in names.items():
        lacking = [site for site, own in present.items() if words not in map(words_of, own.values())]
        if lacking:
            warnings.append(
                f"'{name}' is in no case of {', '.join(lacking)}; if it has another name there, write it "
                f"under site_overrides ({{{lacking[0]}: {{classes: {{its name: {name}}}}}}}), and if it is "
                "present but not labelled, say so in task.labelled"
            )
    return [BACKGROUND, *names.values()], warnings


def numbers_with_gaps(preflights: Preflights) -> list[int]:
    """Return the numbers in labels that nothing names, where some number below the highest is in no case.

    A study then names the structures that there are, and maps each hospital's numbers to them; otherwise its
    network would have an output for each number up to the highest, most of them for nothing.
    """
    numbers = _numbers({site: _present(one) for site, one in preflights.items()})
    return [] if numbers == list(range(1, len(numbers) + 1)) else numbers


def draft_number_maps(preflights: Preflights, sites: Iterable[str]) -> str:
    """Return `site_overrides` that say what the numbers in labels mean everywhere, or '' without gaps."""
    numbers = numbers_with_gaps(preflights)
    if not numbers:
        return ""
    classes = ", ".join(f"{number}: {_numbered_name(number)}" for number in numbers)
    lines = (f"  {site}: {{classes: {{{classes}}}}}\n" for site in sites)
    return "site_overrides:               # what the numbers in each hospital's labels mean\n" + "".join(
        lines
    )


def _numbered_name(number: int) -> str:
    return f"structure{number}"


def _numbers(present: Mapping[str, Mapping[int, str]]) -> list[int]:
    """Return the numbers of the classes: those in labels, or all up to the highest if some have a name."""
    numbers = sorted({number for classes in present.values() for number in classes})
    named = any(name for classes in present.values() for name in classes.values())
    return list(range(1, numbers[-1] + 1)) if named and numbers else numbers


def _by_number(present: Mapping[str, Mapping[int, str]]) -> tuple[list[str], list[str]]:
    numbers, warnings = _numbers(present), []
    for site, classes in present.items():
        if lacking := [_numbered_name(number) for number in numbers if number not in classes]:
            warnings.append(
                f"no case of {site} has {', '.join(lacking)}; what is present but not labelled there, say so "
                "in task.labelled"
            )
    # With gaps the draft says what each number means under site_overrides, by these very names.
    where = (
        "task.classes" if numbers == list(range(1, len(numbers) + 1)) else "task.classes and site_overrides"
    )
    warnings.append(
        f"nothing names the numbers in the labels ('{_numbered_name(numbers[0])}' is label {numbers[0]}): "
        f"write the structures' names into {where}, and make sure that each number means the same at every "
        "hospital"
    )
    return [BACKGROUND, *map(_numbered_name, numbers)], warnings


def class_names(preflights: Preflights) -> tuple[list[str], list[str]]:
    """Return the names of a classifier's classes, and a warning for each hospital that has no case of one.

    Raises:
        DataError: if there is one class only, or the hospitals' folders are named after different classes.
    """
    highest = max(int(target) for one in preflights.values() for target in one.facts["targets"])
    if highest == 0:
        raise DataError("every case is of class 0; a classifier needs at least two classes, 0 and 1")
    own = {site: list(one.facts["class_names"]) for site, one in preflights.items()}
    named = {site: names for site, names in own.items() if names}
    names = max(named.values(), key=len) if named else []
    words = [words_of(name) for name in names]
    for other in named.values():
        if not {words_of(name) for name in other} <= set(words):
            versions = " against ".join(
                ", ".join(names) for names in sorted({tuple(n) for n in named.values()})
            )
            raise DataError(f"the hospitals' classes differ: {versions}; give their folders the same names")
    names += [f"class{number}" for number in range(len(names), highest + 1)]
    warnings = []
    for number, name in enumerate(names):
        for site, one in preflights.items():
            # A folder's targets count its own names; those of a list of cases are the study's.
            targets = {
                words.index(words_of(own[site][int(target)])) if own[site] else int(target)
                for target in one.facts["targets"]
            }
            if number not in targets:
                warnings.append(f"{site} has no case of class {number} ({name})")
    return names, warnings
