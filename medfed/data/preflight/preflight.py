"""Whether a hospital's folder can be trained on: every image is read once, and what is wrong
comes with its cure.

`check` looks at a folder and returns a `Preflight`; nothing in it names a path, a patient or a header's
value: a case is called by its row in cases.csv (or its number in the index) and its salted token. One bad
case never stops the check of the others. To look for something else, add a line to `ISSUE_TYPES` and report it
under that code, from `case.py` where one case shows it, from here where it takes them all.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medfed.data.index import Case, index_folder
from medfed.data.preflight.case import CaseFacts, CaseRequest, examine
from medfed.data.preflight.listing import Listing, list_folder
from medfed.data.settings import Images
from medfed.errors import DataError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Outliers are told where there are so many cases to compare with.
FEWEST_TO_COMPARE = 8
# A voxel edge this many times the site's median, or its inverse, is an outlier.
SPACING_FACTOR = 2.0
# An intensity this many robust deviations off the site's median is an outlier; a deviation counts as at
# least this part of the site's range of intensities, so that a site with one scanner and one protocol isn't
# full of them.
INTENSITY_DEVIATIONS, LEAST_DEVIATION = 6.0, 0.05
# A label whose last slice has this part of its largest area ends abruptly, where the site's labels taper off
# to the second number at most.
CUT_SHARE, TAPERED_SHARE = 0.5, 0.3
# Resampling over more than this factor makes or drops most of what is seen.
RESAMPLING_FACTOR = 3.0
# HU of air are near -1000. A CT without any value below this one is not in HU.
AIR_AT_MOST_HU = -200.0


@dataclass(frozen=True, slots=True)
class IssueType:
    """What an anomaly means, how bad it is and what to do about it."""

    severity: Severity
    title: str
    means: str
    cure: str


ISSUE_TYPES: Mapping[str, IssueType] = {
    # the folder and its table
    "folder": IssueType(
        "error",
        "The folder can't be used as it is",
        "Training refuses it.",
        "Follow the line below.",
    ),
    "row": IssueType(
        "error", "Rows that can't be used", "Training refuses the whole table.", "Mend or remove the rows."
    ),
    "missing_file": IssueType(
        "error",
        "Files that are not there",
        "Training refuses the folder.",
        "Correct the path, or restore the file.",
    ),
    "patient_in_two_splits": IssueType(
        "error",
        "One patient in two splits",
        "The model would be tested on patients that it has trained on, and look better than it is.",
        "Put all of a patient's cases into one split.",
    ),
    # images
    "corrupt": IssueType(
        "error",
        "Images that can't be read rightly",
        "Training stops at the first of them.",
        "Export them again from the archive, or leave the cases out.",
    ),
    "empty_file": IssueType(
        "error",
        "Empty files",
        "A copy that broke off, most likely.",
        "Copy them again, or leave the cases out.",
    ),
    "singular_affine": IssueType(
        "error",
        "Headers whose geometry is impossible",
        "Nothing says where the voxels lie in the patient, nor which side is left.",
        "Convert the images again from their DICOM, or leave the cases out.",
    ),
    "several_volumes": IssueType(
        "error",
        "Several volumes where one is due",
        "Which of them is the case's image can't be guessed.",
        "Put each series or time point into a folder of its own.",
    ),
    "channel_grid": IssueType(
        "error",
        "Channels on different grids",
        "They can't be stacked.",
        "Register and resample them to one grid.",
    ),
    "constant": IssueType(
        "error",
        "Images with one value throughout",
        "There is nothing to see.",
        "Export them again, or leave them out.",
    ),
    "hu_unsigned": IssueType(
        "error",
        "HU stored as unsigned numbers",
        "Values below zero wrapped round to about 65000: air looks brighter than bone.",
        "Convert the images again from their DICOM, with signed numbers.",
    ),
    "hu_offset": IssueType(
        "error",
        "CT images that are not in HU",
        "No voxel is near the -1000 HU of air; 1000 or 1024 was probably added, or the rescale was left out.",
        "Convert the images again from their DICOM; a header with the right slope and intercept mends it.",
    ),
    "near_empty": IssueType(
        "warning",
        "Images with almost nothing in them",
        "Nearly all voxels are alike.",
        "Look at them; leave them out if they are scouts, phantoms or failed exports.",
    ),
    "not_numbers": IssueType(
        "warning",
        "Voxels that are not numbers",
        "Training puts the image's smallest value in their place.",
        "Look whether that is right for these images.",
    ),
    "no_rescale": IssueType(
        "warning",
        "CT without rescale slope and intercept",
        "Its numbers may not be HU.",
        "Export it again from the archive.",
    ),
    "not_hu": IssueType(
        "warning",
        "CT whose header says that it is not in HU",
        "A window in HU is wrong for it.",
        "Leave it out.",
    ),
    "duplicate": IssueType(
        "warning",
        "The same image in several cases",
        "It counts twice in training; across splits or patients, the score is wrong.",
        "Keep one of them; if the patients differ, find out whose it is.",
    ),
    "duplicate_across_splits": IssueType(
        "error",
        "The same image in two splits",
        "The model would be tested on an image that it has trained on.",
        "Keep one of them.",
    ),
    "burned_in": IssueType(
        "warning",
        "Text in the picture",
        "It may be a name, and a model can learn to read it.",
        "Look at the images; mask the text or leave them out.",
    ),
    "face": IssueType(
        "warning",
        "Head scans that may show a face",
        "A face can be rebuilt from the image and recognised. Images don't leave the hospital, but copies and cached "
        "files are personal data.",
        "Deface them if your ethics approval asks for it; ignore this if they are.",
    ),
    "spacing_outlier": IssueType(
        "warning",
        "Voxel sizes unlike the site's others",
        "Another protocol, or a wrong header.",
        "Look whether the images belong to the study.",
    ),
    "intensity_outlier": IssueType(
        "warning",
        "Intensities unlike the site's others",
        "Another modality or contrast, or a wrong slope.",
        "Look whether the images belong to the study.",
    ),
    "orientation": IssueType(
        "note",
        "Images stored in another orientation",
        "Training turns every image to the study's.",
        "Nothing to do.",
    ),
    "lossy": IssueType(
        "note", "Images with lossy compression", "Fine detail is gone.", "Prefer the originals."
    ),
    "tilt": IssueType(
        "note", "CT with a tilted gantry", "It is read with its sheared grid.", "Nothing to do."
    ),
    "qform_differs": IssueType(
        "note",
        "qform and sform differ",
        "The sform is taken, as most programs do.",
        "Nothing to do if it is right.",
    ),
    # labels
    "label_corrupt": IssueType(
        "error",
        "Labels that can't be read rightly",
        "Training stops at the first of them.",
        "Export the labels again, or leave the cases out.",
    ),
    "label_grid": IssueType(
        "error",
        "Labels on another grid than their image",
        "Voxel by voxel they would mark the wrong place.",
        "Resample the label onto the image (nearest neighbour), or find the image that it was drawn on.",
    ),
    "label_classes": IssueType(
        "error",
        "Labels with values that are no class",
        "Training refuses them.",
        "Map the values to classes from 0, or correct the study.",
    ),
    "label_empty": IssueType(
        "warning",
        "Labels without a labelled voxel",
        "Right for a healthy patient; else the label was lost.",
        "Look at them; leave the case out if the label was lost.",
    ),
    "label_healthy": IssueType(
        "note", "Labels without a labelled voxel, of cases with target 0", "", "Nothing to do."
    ),
    "label_cut": IssueType(
        "warning",
        "Labels that end abruptly",
        "The last labelled slice is nearly as large as the largest, unlike the site's other labels: perhaps it was not "
        "finished, or cut off.",
        "Look at the last slices.",
    ),
    "unlabelled": IssueType(
        "note", "Cases without a label", "Segmentation leaves them out.", "Nothing to do."
    ),
    # the study
    "study": IssueType(
        "error",
        "What the study needs and the folder lacks",
        "This hospital can't take part as it is.",
        "As it says.",
    ),
    "study_fit": IssueType(
        "warning",
        "What fits the study badly",
        "Training runs; its results may suffer.",
        "Talk to the coordinator.",
    ),
    "study_note": IssueType("note", "What the study will do with it", "", "Nothing to do."),
    "note": IssueType("note", "Worth knowing", "", ""),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of anomaly: where it is, and for each case what exactly was found."""

    code: str
    severity: Severity
    title: str
    means: str
    cure: str
    cases: tuple[tuple[str, str], ...]  # what a case is called, and the detail


@dataclass(frozen=True, slots=True)
class StudyRequirements:
    """What a study asks of a hospital, as far as its data decide it."""

    study: str
    settings: Images
    needs: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Preflight:
    """A checked folder. It stays in the hospital: facts about single cases are in it, if under salted names."""

    verdict: str
    facts: Mapping[str, Any]
    problems: tuple[Problem, ...]
    cases: tuple[tuple[str, CaseFacts], ...] = field(default=())
    study: str = ""
    can_take_part: bool | None = None

    @property
    def exit(self) -> int:
        """0 where nothing is wrong, 1 for warnings, 2 for errors."""
        worst = {problem.severity for problem in self.problems}
        return 2 if "error" in worst else 1 if "warning" in worst else 0


def check(
    folder: str | Path,
    *,
    site_secret: bytes | None = None,
    wanted: StudyRequirements | None = None,
    processes: int | None = None,
    pictures: bool = False,
    tell: Callable[[int, int], None] = lambda done, all_: None,
) -> Preflight:
    """Return what is in a hospital's folder, what is wrong with it, and whether it can take part in a study.

    Args:
        folder: as for `index_folder`.
        site_secret: the site's key, so that tokens and splits are those of training; without it they are made anew.
        wanted: what a study asks, to be checked against.
        processes: how many read at once; the machine's cores, four at most, by default.
        pictures: also make thumbnails, for the page.
        tell: called with how many cases are done, of how many.

    Raises:
        DataError: if the folder is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such folder; name the folder with the hospital's cases")
    key = site_secret if site_secret is not None else secrets.token_bytes(32)
    fractions = wanted.settings.fractions if wanted is not None else Images().fractions
    listing = list_folder(folder, key, fractions)
    classes = len(wanted.classes) if wanted is not None and wanted.needs == "segment" else None
    use_labels = wanted is None or wanted.needs == "segment"
    jobs = [
        CaseRequest(
            number,
            tuple(map(str, case.image)),
            str(case.label) if case.label is not None and use_labels else None,
            key,
            classes,
            pictures,
        )
        for number, case in enumerate(listing.cases)
        if case.image and all(path.exists() for path in case.image)
    ]
    found = dict(sorted(_examined(jobs, processes, tell), key=lambda one: one[0]))
    troubles = [*listing.troubles, *_of_cases(listing, found), *_of_site(listing, found)]
    if wanted is not None:
        troubles += _against(wanted, listing, found)
    if not any(code in ("folder", "row", "missing_file", "patient_in_two_splits") for code, _, _ in troubles):
        troubles += _as_training_sees(folder, key, fractions)
    problems = _problems(troubles)
    return Preflight(
        verdict=_verdict(problems, listing, found, wanted),
        facts=_facts(listing, found),
        problems=problems,
        cases=tuple((listing.names[number], found[number]) for number in sorted(found)),
        study=wanted.study if wanted is not None else "",
        can_take_part=None if wanted is None else not any(p.severity == "error" for p in problems),
    )


Trouble = tuple[str, str, str]  # code, what the case is called (empty for the site), detail


def _as_training_sees(folder: Path, key: bytes, fractions: Sequence[float]) -> list[Trouble]:
    """Return what training would refuse that nothing above has found: the last word is the index's own."""
    try:
        index_folder(folder, site_secret=key, fractions=fractions)
    except DataError as error:
        return [("folder", "", str(error))]
    return []


# ---------------------------------------------------------------------------------------------- reading


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from running the caller's script again, as `spawn` has them do.

    One without an `if __name__ == "__main__"`, or one that is typed in, would end each of them, and every
    image would be called damaged.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


def _examined(
    jobs: Sequence[CaseRequest], processes: int | None, tell: Callable[[int, int], None]
) -> Iterator[tuple[int, CaseFacts]]:
    """Yield each case's facts; a case that kills its process is told, and the others go on."""
    workers = processes if processes is not None else min(4, os.cpu_count() or 1)
    done = 0
    if workers <= 1 or len(jobs) < 2 * workers:
        for done, job in enumerate(jobs, start=1):
            yield job.number, examine(job)
            tell(done, len(jobs))
        return
    waiting = {job.number: job for job in jobs}
    try:
        with _without_main(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures: dict[Future[CaseFacts], int] = {pool.submit(examine, job): job.number for job in jobs}
            for future in as_completed(futures):
                facts = future.result()
                del waiting[futures[future]]
                done += 1
                yield futures[future], facts
                tell(done, len(jobs))
    except BrokenExecutor:
        pass
    for job in list(
        waiting.values()
    ):  # only where a process died: one at a time, so that it is known for which
        try:
            with _without_main(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                facts = pool.submit(examine, job).result()
        except BrokenExecutor:
            facts = CaseFacts(
                job.number, [("corrupt", "reading it ended its process; memory ran out, or it is damaged")]
            )
        done += 1
        yield job.number, facts
        tell(done, len(jobs))


# ---------------------------------------------------------------------------------------------- anomalies

_FLAGS = ("no_rescale", "not_hu", "lossy", "tilt", "qform_differs")


def _of_cases(listing: Listing, found: Mapping[int, CaseFacts]) -> Iterator[Trouble]:
    for number, facts in found.items():
        name = listing.names[number]
        for code, detail in facts.troubles:
            healthy = code == "label_empty" and listing.cases[number].target == 0
            yield "label_healthy" if healthy else code, name, detail
        for flag in _FLAGS:
            if flag in facts.flags:
                yield flag, name, ""
        yield from _units(facts, name, [one for one in found.values() if one.quantiles])


def _units(facts: CaseFacts, name: str, all_: Sequence[CaseFacts]) -> Iterator[Trouble]:
    if not facts.quantiles:
        return
    wrapped = np.mean(np.asarray(facts.quantiles) > 62000)
    if facts.low >= 0 and 62000 < facts.high <= 65535 and wrapped > 0.005:
        yield "hu_unsigned", name, f"{wrapped:.0%} of its voxels lie above 62000, none below 0"
        return
    unmarked = [one for one in all_ if not one.modality]
    like_ct = sum(one.low < -900 for one in unmarked) > 0.5 * len(unmarked) and len(unmarked) > 1
    is_ct = facts.modality == "CT" or (not facts.modality and like_ct)
    if is_ct and facts.low > AIR_AT_MOST_HU and facts.high > 900:
        yield "hu_offset", name, f"values from {facts.low:.0f} to {facts.high:.0f}"


def _of_site(listing: Listing, found: Mapping[int, CaseFacts]) -> Iterator[Trouble]:
    yield from _duplicates(listing, found)
    good = {number: facts for number, facts in found.items() if facts.read and facts.quantiles}
    if len(good) >= FEWEST_TO_COMPARE:
        yield from _spacing_outliers(listing, good)
        yield from _intensity_outliers(listing, good)
    shares = [facts.cut_share for facts in good.values() if facts.cut_share]
    if len(shares) >= FEWEST_TO_COMPARE and float(np.median(shares)) < TAPERED_SHARE:
        for number, facts in good.items():
            if facts.cut_share > CUT_SHARE:
                yield (
                    "label_cut",
                    listing.names[number],
                    f"its last slice has {facts.cut_share:.0%} of its largest area",
                )
    usual = Counter(facts.orientation for facts in good.values()).most_common(1)
    for number, facts in good.items():
        if facts.orientation != usual[0][0]:
            yield "orientation", listing.names[number], f"{facts.orientation}, most are {usual[0][0]}"
    some_labelled = any(case.label is not None for case in listing.cases)
    for number, case in enumerate(listing.cases):
        if some_labelled and case.label is None:
            yield "unlabelled", listing.names[number], ""


def _duplicates(listing: Listing, found: Mapping[int, CaseFacts]) -> Iterator[Trouble]:
    alike: dict[str, list[int]] = defaultdict(list)
    for number, facts in sorted(found.items()):
        if facts.digest and facts.low < facts.high:
            alike[facts.digest].append(number)
    for numbers in alike.values():
        if len(numbers) < 2:
            continue
        cases = [listing.cases[number] for number in numbers]
        code = "duplicate_across_splits" if len({case.split for case in cases}) > 1 else "duplicate"
        others = "of one patient" if len({case.patient for case in cases}) == 1 else "under several patients"
        for number in numbers[1:]:
            yield code, listing.names[number], f"the same voxels as {listing.names[numbers[0]]}, {others}"


def _spacing_outliers(listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Trouble]:
    # Sorted, so that a volume stored with its axes in another order is compared edge by edge.
    edges = {number: np.sort(facts.spacing_mm) for number, facts in good.items()}
    middle = np.median(np.stack(list(edges.values())), axis=0)
    for number, edge in edges.items():
        ratio = edge / middle
        if ratio.max() > SPACING_FACTOR or ratio.min() < 1 / SPACING_FACTOR:
            yield (
                "spacing_outlier",
                listing.names[number],
                f"{_mm(good[number].spacing_mm)} mm, median {_mm(middle)} mm",
            )


def _intensity_outliers(listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Trouble]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, facts in good.items():
        groups[facts.modality].append(number)
    for numbers in groups.values():
        if len(numbers) < FEWEST_TO_COMPARE:
            continue
        values = np.array([[good[n].quantiles[50], good[n].quantiles[-2]] for n in numbers])
        spread = float(np.median([good[n].quantiles[-2] - good[n].quantiles[1] for n in numbers]))
        middle = np.median(values, axis=0)
        deviation = np.maximum(
            1.4826 * np.median(np.abs(values - middle), axis=0), max(LEAST_DEVIATION * spread, 1e-9)
        )
        off = np.abs(values - middle) / deviation
        for row, number in enumerate(numbers):
            worst = int(off[row].argmax())
            if off[row, worst] > INTENSITY_DEVIATIONS:
                which = ("median", "99th percentile")[worst]
                yield (
                    "intensity_outlier",
                    listing.names[number],
                    f"its {which} is {values[row, worst]:.5g}, the site's {middle[worst]:.5g}",
                )


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.2f}" for value in values)


# ---------------------------------------------------------------------------------------------- the study


def _against(
    wanted: StudyRequirements, listing: Listing, found: Mapping[int, CaseFacts]
) -> Iterator[Trouble]:
    settings = wanted.settings
    good = {number: facts for number, facts in found.items() if facts.read}
    has: Callable[[Case], bool] = (
        (lambda case: case.label is not None)
        if wanted.needs == "segment"
        else (lambda case: case.target is not None)
    )
    what = "label" if wanted.needs == "segment" else "target"
    if wanted.needs not in ("segment", "classify"):
        yield (
            "study",
            "",
            "the study learns from a table, this folder holds images; name the site's CSV file instead",
        )
        return
    usable = [case for case in listing.cases if has(case)]
    if not usable:
        yield "study", "", f"no case has a {what}, which the study's task needs"
    elif len(usable) < len(listing.cases):
        yield "study_note", "", f"{len(listing.cases) - len(usable)} cases have no {what} and are left out"
    splits = Counter(case.split for case in usable)
    if usable and not splits["train"]:
        yield "study", "", "no usable case is in the split 'train'; mark some in the column 'split'"
    for split, use in (
        ("val", "the model can't be watched here"),
        ("test", "it can't be measured on this hospital"),
    ):
        if usable and not splits[split]:
            yield "study_fit", "", f"no usable case is in the split '{split}': {use}"
    for number, facts in good.items():
        if facts.channels != settings.channels:
            yield (
                "study",
                listing.names[number],
                f"{facts.channels} channels, the study wants {settings.channels}",
            )
    yield from _classes_against(wanted, listing, good, usable)
    yield from _grid_against(settings, listing, good)
    from medfed.data.normalise.window import Window

    if isinstance(settings.normalise, Window):
        others = [n for n, facts in good.items() if facts.modality not in ("CT", "")]
        for number in others:
            detail = f"{good[number].modality}, and the study normalises with a window in HU"
            yield "study_fit", listing.names[number], detail


def _classes_against(
    wanted: StudyRequirements, listing: Listing, good: Mapping[int, CaseFacts], usable: Sequence[Case]
) -> Iterator[Trouble]:
    count = len(wanted.classes)
    if wanted.needs == "classify":
        for number, case in enumerate(listing.cases):
            if case.target is not None and case.target >= count:
                yield (
                    "study",
                    listing.names[number],
                    f"target {case.target}; the study has classes 0 to {count - 1}",
                )
        present = {case.target for case in usable if case.split == "train"}
        rare = [f"{k} ({wanted.classes[k]})" for k in range(count) if k not in present]
    else:
        seen = {number for facts in good.values() for number in facts.classes}
        rare = [f"{k} ({wanted.classes[k]})" for k in range(1, count) if k not in seen] if seen else []
    if rare:
        yield "study_fit", "", f"no case here has class {', '.join(rare)}"


def _grid_against(settings: Images, listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Trouble]:
    if settings.spacing_mm == "native":
        if settings.patch is None and len({facts.shape for facts in good.values()}) > 1:
            yield (
                "study_fit",
                "",
                "sizes differ and the study trains on whole volumes at native spacing, one at a time",
            )
        return
    wanted = np.sort(settings.spacing_mm)
    small = 0
    for number, facts in good.items():
        ratio = np.sort(facts.spacing_mm) / wanted
        if max(ratio.max(), 1 / ratio.min()) > RESAMPLING_FACTOR:
            detail = f"{_mm(facts.spacing_mm)} mm, resampled to {_mm(settings.spacing_mm)} mm"
            yield "study_fit", listing.names[number], detail
        if settings.patch is not None:
            extent = np.sort(np.multiply(facts.shape, facts.spacing_mm))
            small += bool((extent < np.sort(np.multiply(settings.patch, settings.spacing_mm)) - 1e-6).any())
    if small:
        yield (
            "study_note",
            "",
            f"{small} images are smaller than the study's patch and are filled up at their edges",
        )


# ---------------------------------------------------------------------------------------------- the result


def _problems(troubles: Sequence[Trouble]) -> tuple[Problem, ...]:
    grouped: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for code, name, detail in troubles:
        if (name, detail) not in grouped[code]:
            grouped[code].append((name, detail))
    found = []
    for code, cases in grouped.items():
        meaning = ISSUE_TYPES[code]
        found.append(
            Problem(code, meaning.severity, meaning.title, meaning.means, meaning.cure, tuple(cases))
        )
    return tuple(sorted(found, key=lambda p: (SEVERITIES.index(p.severity), -len(p.cases), p.code)))


def _verdict(
    problems: Sequence[Problem],
    listing: Listing,
    found: Mapping[int, CaseFacts],
    wanted: StudyRequirements | None,
) -> str:
    errors = [p for p in problems if p.severity == "error"]
    warnings = [p for p in problems if p.severity == "warning"]
    bad = {name for p in errors for name, _ in p.cases if name}
    total = len(listing.cases)
    where = f", in {len(bad)} of {total} cases" if bad else ""
    if not total:
        return "Nothing to train on: no case was found."
    if errors:
        kinds = f"{len(errors)} kind{'s' if len(errors) > 1 else ''} of error{where}"
        if wanted is not None:
            return f"This hospital can't take part in '{wanted.study}' yet: {kinds}."
        return f"Not ready: {kinds}."
    look = f" Look at {len(warnings)} warning{'s' if len(warnings) > 1 else ''} first." if warnings else ""
    if wanted is not None:
        return f"This hospital can take part in '{wanted.study}' with {total} cases.{look}"
    return f"Ready: {total} cases, all of them can be read.{look}"


def _facts(listing: Listing, found: Mapping[int, CaseFacts]) -> dict[str, Any]:
    good = [facts for facts in found.values() if facts.read]
    cases = listing.cases
    voxels: Counter[int] = Counter()
    holding: Counter[int] = Counter()
    for facts in good:
        for number, count in facts.classes.items():
            voxels[number] += count
            holding[number] += 1
    names = listing.class_names
    targets = Counter(case.target for case in cases if case.target is not None)
    return {
        "layout": listing.layout,
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        "read": len(good),
        "splits": dict(sorted(Counter(case.split for case in cases).items())),
        "labels": sum(case.label is not None for case in cases),
        "targets": {str(target): targets[target] for target in sorted(targets)},
        "class_names": list(names),
        "classes": {
            str(number): {
                "name": names[number] if number < len(names) else "",
                "cases": holding[number],
                "share": voxels[number] / sum(voxels.values()),
            }
            for number in sorted(voxels)
        },
        "modality": _counts(facts.modality or "not told (NIfTI)" for facts in good),
        "scanner": _counts(facts.scanner or "not told" for facts in good),
        "orientation": _counts(facts.orientation for facts in good),
        "channels": _counts(str(facts.channels) for facts in good),
        "spacing_mm": _range([facts.spacing_mm for facts in good]),
        "size": _range([facts.shape for facts in good]),
        "intensity": _range(
            [(f.quantiles[1], f.quantiles[50], f.quantiles[-2]) for f in good if f.quantiles]
        ),
    }


def _counts(words: Iterator[str] | Sequence[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _range(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    if not rows:
        return {}
    table = np.asarray(rows, np.float64)
    places = (("least", table.min(axis=0)), ("median", np.median(table, axis=0)), ("most", table.max(axis=0)))
    return {name: [round(float(value), 4) for value in values] for name, values in places}


def as_json(found: Preflight) -> dict[str, Any]:
    """Return a preflight as plain values, for a program; thumbnails and keyed hashes are left out."""
    return {
        "verdict": found.verdict,
        "exit": found.exit,
        "study": found.study or None,
        "can_take_part": found.can_take_part,
        "facts": dict(found.facts),
        "problems": [
            {
                "code": problem.code,
                "severity": problem.severity,
                "title": problem.title,
                "means": problem.means,
                "cure": problem.cure,
                "cases": [{"case": name or None, "detail": detail} for name, detail in problem.cases],
            }
            for problem in found.problems
        ],
        "cases": [
            {
                "case": name,
                "read": facts.read,
                "shape": list(facts.shape),
                "spacing_mm": [round(value, 4) for value in facts.spacing_mm],
                "orientation": facts.orientation,
                "modality": facts.modality,
                "classes": {str(k): v for k, v in facts.classes.items()},
                "troubles": [code for code, _ in facts.troubles],
            }
            for name, facts in found.cases
        ],
    }
