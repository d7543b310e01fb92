"""The preflight of a hospital's folder: every image is read once, and each issue comes with its remedy.

`check` returns a `Preflight`; nothing in it holds a path, a patient or a header's value. A case is named by
its row in cases.csv (or its number in the index) and its salted token. One bad case never stops the check of
the others. To look for something else, add a section to `issues.toml` and report its code: from `case.py` if
one case shows it, from `site_checks.py` if it takes a comparison, from `study_checks.py` if a study decides.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medfed.data.batch_needs import Needs
from medfed.data.case import Case
from medfed.data.case_reading import naming
from medfed.data.case_table import with_table
from medfed.data.channels import match_channels, unnamed_note, with_own_names
from medfed.data.class_names import Classes, ClassNames, count_of
from medfed.data.findings import read_findings
from medfed.data.folder_options import FolderOptions
from medfed.data.index import Index, index_folder
from medfed.data.label_naming import match_classes
from medfed.data.layouts import Layout
from medfed.data.left_out import describe_left_out, note_left_out
from medfed.data.preflight.case import CaseFacts, CaseRequest, refuse
from medfed.data.preflight.examination import examine_all
from medfed.data.preflight.issues import ISSUE_TYPES, Finding, Problem, group_findings
from medfed.data.preflight.listing import Listing, list_folder
from medfed.data.preflight.rows import table_facts, table_findings
from medfed.data.preflight.site_checks import case_findings, site_findings
from medfed.data.preflight.structures import naming_findings, shared_structures
from medfed.data.preflight.study_checks import StudyRequirements, moved_findings, study_findings
from medfed.data.preflight.summary import summarise, verdict
from medfed.data.refusals import reason_of
from medfed.data.screening import RefusedCase, check_training, count_reasons, left_out_line
from medfed.data.settings import Images, Unreadable
from medfed.data.whole_images import Extent, check_extents, check_whole_size
from medfed.errors import DataError, ImageError


@dataclass(frozen=True, slots=True, repr=False)
class Preflight:
    """A checked folder. It stays in the hospital: it holds facts about single cases, under salted names."""

    verdict: str
    facts: Mapping[str, Any]
    problems: tuple[Problem, ...]
    cases: tuple[tuple[str, CaseFacts], ...] = field(default=())
    study: str = ""
    can_take_part: bool | None = None
    # The cases that training would use, by split; empty if it refuses the folder.
    usable: Mapping[str, int] = field(default_factory=dict)
    # Why its cases cannot be listed; what is shown of them then is a guess.
    unlisted: str = ""

    @property
    def exit_code(self) -> int:
        """0 if nothing is wrong, 1 for warnings, 2 for errors."""
        severities = {problem.severity for problem in self.problems}
        return 2 if "error" in severities else 1 if "warning" in severities else 0


def check(
    folder: str | Path,
    *,
    site_secret: bytes | None = None,
    requirements: StudyRequirements | None = None,
    bears: Unreadable | None = None,
    processes: int | None = None,
    thumbnails: bool = False,
    options: FolderOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Preflight:
    """Return the contents of a hospital's folder, its issues, and whether it can take part in a study.

    Args:
        folder: as for `index_folder`.
        site_secret: the site's key, so that tokens and splits are those of training; a random one if None.
        requirements: of the study to check against.
        bears: how many cases the site leaves out because they cannot be used; by default as the study says.
        processes: how many processes read at once; by default the machine's cores, at most four.
        thumbnails: also make thumbnails, for the page.
        options: how the cases lie, if not as the study says or the folder shows; and how they are read
            without a study.
        progress: called with the number of cases done and of all cases.

    Raises:
        DataError: if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such folder; name the folder with the hospital's cases")
    key = site_secret if site_secret is not None else secrets.token_bytes(32)
    settings = requirements.settings if requirements is not None else Images()
    options = options or FolderOptions()
    layout = options.layout
    if layout is None and requirements is not None:
        layout = requirements.settings.given_layout
    opened = _open(folder, key, requirements, layout)
    listed = list_folder(folder, key, settings.fractions, layout, settings.fold)
    listing = _as_opened(listed, opened)
    requests = _requests(listing, key, requirements, opened.classes, thumbnails, options)
    by_number = {facts.number: facts for facts in examine_all(requests, processes, progress)}
    examined = {number: by_number[number] for number in sorted(by_number)}
    _refuse_sizes(listing, examined, requirements)
    findings = [*listing.findings, *case_findings(listing, examined), *site_findings(listing, examined)]
    if requirements is not None:
        findings += study_findings(requirements, listing, examined)
    findings += moved_findings(examined.values())
    findings += _left_out_findings(folder, key, listing)
    findings += table_findings(opened.index, listing)
    refused = _refused(listing, examined, opened.index)
    bears = bears or (requirements.settings.unreadable if requirements is not None else Unreadable())
    told = [finding.detail for finding in findings if ISSUE_TYPES[finding.code].severity == "error"]
    extents = {listing.cases[number].token: facts.extent for number, facts in examined.items()}
    usable, training = _training_findings(opened, requirements, refused, bears, extents)
    findings += [
        finding for finding in training if not any(detail and detail in finding.detail for detail in told)
    ]
    problems = group_findings(findings)
    study = requirements.study if requirements is not None else None
    return Preflight(
        verdict=verdict(problems, len(listing.cases), study, len(refused)),
        facts=summarise(listing, examined.values()) | table_facts(opened.index, requirements),
        problems=problems,
        cases=tuple((listing.names[number], facts) for number, facts in examined.items()),
        study=study or "",
        can_take_part=None if study is None else not any(p.severity == "error" for p in problems),
        usable=Counter(case.split for case in usable),
        unlisted="" if opened.listed else opened.error,
    )


@dataclass(frozen=True, repr=False)
class _Opened:
    """A folder as training opens it, with the classes of its labels.

    `error` says why training refuses it, `listed` whether its cases could be listed at all.
    """

    index: Index | None
    classes: Classes
    error: str = ""
    listed: bool = True


def _open(folder: Path, key: bytes, requirements: StudyRequirements | None, layout: Layout | None) -> _Opened:
    settings, needs = Images(), ""
    naming: Classes = None
    if requirements is not None:
        settings, needs = requirements.settings, requirements.needs
        if requirements.classes:
            naming = ClassNames(requirements.classes, requirements.words, expected=requirements.expected)
    try:
        index = index_folder(
            folder, site_secret=key, fractions=settings.fractions, fold=settings.fold, layout=layout
        )
    except DataError as error:
        return _Opened(None, naming, str(error), listed=False)
    try:
        if requirements is not None:
            own = requirements.own_data
            index = with_own_names(index, own.channels if own is not None else {})
            index = match_channels(index, requirements.settings)
        elif note := unnamed_note(index):
            index = replace(index, notes=(*index.notes, note))
        if requirements is None:
            return _Opened(index, shared_structures(index, key))
        index = with_table(index, requirements.settings.table, requirements.own_data)
        return _Opened(*match_classes(index, naming, needs, key))
    except DataError as error:
        return _Opened(None, naming, str(error))


def _as_opened(listing: Listing, opened: _Opened) -> Listing:
    """Return a listing whose cases have the labels and targets that training gives them."""
    if opened.index is None:
        return listing
    matched = {case.token: case for case in opened.index.cases}
    structures = opened.classes.classes if isinstance(opened.classes, ClassNames) else ()
    if opened.index.rows is not None:
        # The table beside the images is used, too.
        files = opened.index.left_out_files
        listing = replace(listing, left_out=opened.index.left_out, left_out_files=files)
    return replace(
        listing,
        cases=tuple(matched.get(case.token, case) for case in listing.cases),
        findings=(*listing.findings, *naming_findings(opened.index, listing)),
        structures=structures,
    )


def _left_out_findings(folder: Path, key: bytes, listing: Listing) -> list[Finding]:
    """Return what no case uses, as notes; the files' names are written into the hospital's own folder."""
    if not listing.left_out:
        return []
    told = f"left out: {describe_left_out(listing.left_out)}"
    where = note_left_out(folder, listing.left_out_files, key)
    return [Finding("note", "", told), *([Finding("note", "", where)] if where else [])]


def _requests(
    listing: Listing,
    key: bytes,
    requirements: StudyRequirements | None,
    classes: Classes,
    thumbnails: bool,
    options: FolderOptions,
) -> list[CaseRequest]:
    """Return an examination request for each case that names an image."""
    settings: Images | None = None
    needs: Needs = "segment"
    if requirements is not None:
        settings, needs = requirements.settings, requirements.needs
    return [
        # A mapping proxy, as attributes are, cannot be sent to another process.
        CaseRequest(number, replace(case, attributes={}), key, settings, needs, classes, thumbnails, options)
        for number, case in enumerate(listing.cases)
        if case.image
    ]


def _refuse_sizes(
    listing: Listing, examined: Mapping[int, CaseFacts], requirements: StudyRequirements | None
) -> None:
    """Note which images the study's network cannot take whole, as training does."""
    if requirements is None:
        return
    for number, facts in examined.items():
        case = listing.cases[number]
        if facts.extent is None or facts.refusal is not None:
            continue
        try:
            with naming(case):
                check_whole_size(facts.extent, requirements.settings, requirements.check_size)
        except ImageError as error:
            refuse(error, case, facts)


def _refused(listing: Listing, examined: Mapping[int, CaseFacts], index: Index | None) -> list[RefusedCase]:
    """Return the cases that training refuses, each once: for its row in a table first, as training does."""
    rows = index.rows.refused if index is not None and index.rows is not None else {}
    of_table = [
        RefusedCase(case, reason_of(rows[case.token]), str(rows[case.token]))
        for case in listing.cases
        if case.token in rows
    ]
    of_image = [
        RefusedCase(listing.cases[number], *facts.refusal)
        for number, facts in examined.items()
        if facts.refusal is not None and listing.cases[number].token not in rows
    ]
    return [*of_table, *of_image]


def _training_findings(
    opened: _Opened,
    requirements: StudyRequirements | None,
    refused: Sequence[RefusedCase],
    bears: Unreadable,
    extents: Mapping[str, Extent | None],
) -> tuple[tuple[Case, ...], list[Finding]]:
    """Return the cases that training would use, and what it would refuse or leave out, in its own words."""
    if opened.index is None:
        return (), [Finding("folder", "", opened.error)]
    needs = requirements.needs if requirements is not None else None
    # Without a study nobody can say whether this hospital will train, or models are only measured on it.
    trains = requirements is not None and requirements.trains
    try:
        labelled = _labelled(opened.index, requirements)
        count = count_of(opened.classes)
        used = check_training(opened.index, refused, bears, needs, count, labelled, trains)
        if requirements is not None:
            known = {token: extent for token, extent in extents.items() if extent is not None}
            check_extents(used, known, requirements.settings, requirements.batch, requirements.training)
    except DataError as error:
        return (), [Finding("folder", "", str(error))]
    notes = []
    if counts := count_reasons(refused):
        notes.append(left_out_line(counts, len(opened.index.cases)))
    if requirements is None and not any(case.split == "train" for case in used):
        notes.append(
            f"no training case ({opened.index.describe()}): models can only be measured here (`held_out` of "
            "a study); to train, mark cases as 'train' in the column 'split'"
        )
    return used, [Finding("note", "", note) for note in notes]


def _labelled(index: Index, requirements: StudyRequirements | None) -> frozenset[str]:
    """Return the tokens of the cases with a labelled finding, for a study on several findings."""
    if requirements is None or requirements.needs != "multilabel":
        return frozenset()
    return frozenset(read_findings(index.cases, requirements.classes, requirements.settings.findings))


def to_plain(preflight: Preflight) -> dict[str, Any]:
    """Return a preflight as plain values, for JSON; thumbnails and keyed hashes are omitted."""
    return {
        "verdict": preflight.verdict,
        "exit": preflight.exit_code,
        "study": preflight.study or None,
        "can_take_part": preflight.can_take_part,
        "facts": dict(preflight.facts),
        "problems": [
            asdict(problem)
            | {"cases": [{"case": name or None, "detail": detail} for name, detail in problem.cases]}
            for problem in preflight.problems
        ],
        "cases": [_plain_case(name, facts) for name, facts in preflight.cases],
    }


def _plain_case(name: str, facts: CaseFacts) -> dict[str, Any]:
    return {
        "case": name,
        "read": facts.read,
        "shape": list(facts.shape),
        "spacing_mm": [round(value, 4) for value in facts.spacing_mm],
        "orientation": facts.orientation,
        "modality": facts.modality,
        "classes": {str(number): count for number, count in facts.classes.items()},
        "troubles": [code for code, _ in facts.issues],
    }
