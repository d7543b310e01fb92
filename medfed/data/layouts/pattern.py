"""Cases anywhere, found by patterns of their paths: for folders that no other layout knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medfed.data.case import Fault
from medfed.data.layouts._files import SPLIT_FOLDERS, in_split
from medfed.data.layouts._layout import NO_PATIENTS, CaseError, CaseListing, Layout, ListedCase
from medfed.data.layouts._numbered_channels import one_of
from medfed.data.layouts._survey import Survey
from medfed.data.refusals import SeveralFilesError, SeveralLabelsError
from medfed.errors import DataError

PLACEHOLDERS = ("patient", "case", "split", "class", "structure")

# Placeholders that tell cases apart; every pattern has the same ones.
IDENTITY = ("patient", "case")

# A case's key: its placeholders' values. A class or split counts only where every pattern has it.
KEY = ("class", *IDENTITY, "split")

_TOKEN = re.compile(r"\{(\w+)\}|(\*\*/)|(\*)|(\?)|([^{}*?]+)|([{}])")

_Key = tuple[str, ...]


@dataclass(frozen=True)
class _Pattern:
    """A pattern as a regular expression; `literal` counts its fixed characters, `role` is what it finds."""

    role: str
    expression: re.Pattern[str]
    literal: int


@dataclass(frozen=True, repr=False)
class _Match:
    """A file or series folder that a pattern takes, and the values of its placeholders."""

    path: Path
    values: Mapping[str, str]


class Pattern(Layout, tag="pattern", frozen=True):
    """Cases by patterns of paths, such as `{patient}/*_t1.nii.gz` with the label `{patient}/*_seg.nii.gz`.

    image: the pattern of the image, or one per channel by name, in order.  label: that of the label; with
    `{structure}` it finds one mask per structure.

    `{patient}`, `{case}`, `{split}`, `{class}` and `{structure}` stand for a part of a name and are read from
    it; `*` is any part of a name, `**/` any folders, and a pattern that ends with `/` is a folder of one
    DICOM series. A file is taken by the pattern that says most of its path.
    """

    title: ClassVar[str] = "a pattern of paths"
    needs: ClassVar[str] = "to be said, as `layout: {kind: pattern, image: ..., label: ...}`"
    order: ClassVar[int] = 95

    image: str | dict[str, str] = ""
    label: str = ""

    def evidence(self, survey: Survey) -> str | None:
        """Return None: a pattern is always said."""

    def read(self, survey: Survey) -> CaseListing:
        names, patterns = self._patterns()
        matches = _match(survey, patterns)
        shared = [name for name in KEY if name in IDENTITY or all(_has(one, name) for one in patterns)]
        by_key = {pattern.role: _group(matches[pattern.role], shared) for pattern in patterns}
        keys = sorted({key for groups in by_key.values() for key in groups})
        every = [one for found in matches.values() for one in found]
        classes = sorted({one.values["class"] for one in every if "class" in one.values})
        cases = tuple(_case(key, names, by_key, classes) for key in keys)
        patient = all(_has(pattern, "patient") for pattern in patterns)
        return CaseListing(
            self.title,
            cases,
            () if patient else (NO_PATIENTS,),
            tuple(classes),
            channels=tuple(self.image) if isinstance(self.image, dict) and len(names) > 1 else (),
        )

    def _patterns(self) -> tuple[tuple[str, ...], list[_Pattern]]:
        """Return the channels' roles in order, and all patterns.

        Raises:
            DataError: for a pattern that says nothing, or that cannot find the case of its files.
        """
        images = self.image if isinstance(self.image, dict) else {"image": self.image}
        if not images or not all(images.values()):
            raise DataError(
                "layout: a pattern needs `image`, such as `{kind: pattern, image: '{patient}/*_t1.*', "
                "label: '{patient}/*_seg.*'}`"
            )
        names = tuple(f"image {name}" for name in images) if images is self.image else ("image",)
        patterns = [_compile(role, text) for role, text in zip(names, images.values(), strict=True)]
        patterns += [_compile("label", self.label)] if self.label else []
        identities = {tuple(name for name in IDENTITY if _has(pattern, name)) for pattern in patterns}
        if len(identities) > 1 or () in identities:
            raise DataError(
                "layout: all patterns need the same of {patient} and {case}, at least one of them: they say "
                "which files belong together"
            )
        if any(_has(pattern, "structure") for pattern in patterns if pattern.role != "label"):
            raise DataError("layout: {structure} is for the pattern of the label: one mask per structure")
        return names, patterns


def _has(pattern: _Pattern, placeholder: str) -> bool:
    return placeholder in pattern.expression.groupindex


def _compile(role: str, text: str) -> _Pattern:
    """Return a pattern's regular expression.

    Raises:
        DataError: for an unknown placeholder or a brace that is not closed.
    """
    expression, literal, seen = "", 0, set()
    for match in _TOKEN.finditer(text):
        name, folders, star, one, fixed, brace = match.groups()
        if brace or (name and name not in PLACEHOLDERS):
            known = ", ".join(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS)
            raise DataError(
                f"layout: a pattern has an unknown placeholder or a single brace; there are {known}"
            )
        if name:
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        elif fixed:
            expression, literal = expression + re.escape(fixed), literal + len(fixed)
        else:
            expression += "(?:[^/]+/)*" if folders else "[^/]*" if star else "[^/]" if one else ""
    return _Pattern(role, re.compile(expression), literal)


def _match(survey: Survey, patterns: Sequence[_Pattern]) -> dict[str, list[_Match]]:
    """Return what each pattern takes, by its role.

    Raises:
        DataError: if a path fits two patterns equally well, or a pattern takes nothing.
    """
    found: dict[str, list[_Match]] = {pattern.role: [] for pattern in patterns}
    for text, path in _candidates(survey):
        fits = [(pattern, match) for pattern in patterns if (match := pattern.expression.fullmatch(text))]
        most = max((pattern.literal for pattern, _ in fits), default=0)
        best = [(pattern, match) for pattern, match in fits if pattern.literal == most]
        if len(best) > 1:
            roles = " and ".join(pattern.role for pattern, _ in best)
            raise DataError(
                f"layout: one file fits the patterns of {roles} equally well; make them more exact"
            )
        for pattern, match in best:
            found[pattern.role].append(_Match(path, match.groupdict()))
    for role, matches in found.items():
        if not matches:
            raise DataError(
                f"layout: no file fits the pattern of {role} (the folder holds {survey.describe()}); a "
                "pattern is a path below the data folder, such as '{patient}/*_t1.*'"
            )
    return found


def _candidates(survey: Survey) -> Iterator[tuple[str, Path]]:
    """Yield files, and folders that hold DICOM files, by their paths below the data folder."""
    for file in survey.files:
        yield "/".join(file.parts), file.path
    for parts, files in survey.folders.items():
        if any(file.format == "dicom" for file in files):
            yield "/".join(parts) + "/", survey.folder.joinpath(*parts)


def _group(matches: Sequence[_Match], placeholders: Sequence[str]) -> dict[_Key, list[_Match]]:
    """Return the matches of each key, which has no value where not every pattern has the placeholder."""
    groups: dict[_Key, list[_Match]] = {}
    for match in matches:
        key = tuple(match.values.get(name, "") if name in placeholders else "" for name in KEY)
        groups.setdefault(key, []).append(match)
    return groups


def _case(
    key: _Key, names: Sequence[str], by_key: Mapping[str, Mapping[_Key, list[_Match]]], classes: Sequence[str]
) -> ListedCase:
    *own, _ = key
    identity = "/".join(filter(None, own))
    labels = by_key.get("label", {}).get(key, [])
    matched = [one for role in by_key for one in by_key[role].get(key, [])]
    split, name = _only("split", matched, identity), _only("class", matched, identity)
    masks = tuple((one.values["structure"], one.path) for one in labels if "structure" in one.values)
    found = {role: by_key[role].get(key, []) for role in names}
    return ListedCase(
        in_split(_known_split(split), identity),
        matched[0].values.get("patient") or identity,
        tuple(one_of([one.path for one in found[role]]) for role in names),
        labels[0].path if labels and not masks else None,
        classes.index(name) if name else None,
        _known_split(split),
        masks=masks,
        fault=_fault(found, [] if masks else labels),
    )


def _fault(found: Mapping[str, Sequence[_Match]], labels: Sequence[_Match]) -> Fault | None:
    """Return why a case's files are not those that are meant, or None."""
    for role, matches in found.items():
        if len(matches) > 1:
            return Fault(
                SeveralFilesError,
                f"the pattern of {role} takes {len(matches)} files of it, and one is expected; use {{case}} "
                "where a patient has several, or make the pattern more exact",
            )
    if len(labels) > 1:
        return Fault(
            SeveralLabelsError,
            f"the pattern of its label takes {len(labels)} files, and one is expected; make it more exact, "
            "or use {structure} for one mask per structure",
        )
    return None


def _only(name: str, matches: Sequence[_Match], identity: str) -> str:
    values = {match.values[name] for match in matches if name in match.values}
    if len(values) > 1:
        raise CaseError(
            identity, f"its files are in {len(values)} different places for {{{name}}}; one is expected"
        )
    return values.pop() if values else ""


def _known_split(name: str) -> str:
    if name and name.lower() not in SPLIT_FOLDERS:
        raise DataError(
            "layout: {split} stands for a word that is no split; there are "
            + ", ".join(sorted(SPLIT_FOLDERS))
        )
    return SPLIT_FOLDERS[name.lower()] if name else ""
