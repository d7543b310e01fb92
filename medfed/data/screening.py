"""Which of a site's cases can be used: each is read once before the first round.

A case that cannot be used (a missing or damaged file, a label of another patient, another number of channels)
is left out, counted by fixed words and listed in the hospital's own notes, within the share that the site's
policy bears. Thus the number of training cases is known before round 1, and an update's weight is that of
what was trained on. `medfed check` and training share every function here, so that one passes exactly what
the other takes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medfed.data.case import Case
from medfed.data.index import Index
from medfed.data.own_notes import write_note
from medfed.data.refusals import of_case, reason_of
from medfed.data.settings import Unreadable
from medfed.data.whole_images import Extent
from medfed.errors import DataError, ImageError, place_in_plugin

# The note in which a hospital finds the cases that were left out.
NOTE = "unusable-cases"


@dataclass(frozen=True, repr=False)
class RefusedCase:
    """A case that cannot be used; `message` names it by its token and may be printed."""

    case: Case
    reason: str
    message: str


@dataclass(frozen=True, repr=False)
class Screening:
    """What reading each case once has shown: refused cases, and a digest of the image of each other one.

    A digest is of voxels alone; a constant image has none, as all constant images are alike. `extents` are
    the sizes of prepared images, by token.
    """

    refused: tuple[RefusedCase, ...] = ()
    digests: tuple[tuple[Case, bytes], ...] = ()
    extents: Mapping[str, Extent] = field(default_factory=dict)


# What a case of images must have, by the task's needs.
WHAT_IS_LEARNT = {
    "segment": "label",
    "classify": "target",
    "multilabel": "labelled finding",
    "image": "image",
}


def usable_cases(
    index: Index, needs: str, classes: int | None, labelled: Container[str] = frozenset()
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Return the cases that a task on images can use, and a note on those that it cannot.

    `labelled` holds the tokens of the cases with a labelled finding, for a task on several findings.

    Raises:
        DataError: if there is none, a target is no class of the task, or the task needs a table.
    """
    if needs not in WHAT_IS_LEARNT:
        raise DataError(
            f"the task needs a table and data.kind is 'images'; set data.kind to 'table' (needs: {needs})"
        )
    what = WHAT_IS_LEARNT[needs]
    if needs == "segment":
        cases = tuple(case for case in index.cases if _is_labelled(case))
    elif needs == "image":
        cases = tuple(index.cases)
    elif needs == "classify":
        cases = tuple(case for case in index.cases if case.target is not None)
    else:
        cases = tuple(case for case in index.cases if case.token in labelled)
    if not cases:
        raise DataError(f"no case of the site has a {what}, which the task needs ({index.describe()})")
    if needs == "classify":
        _check_targets(cases, classes)
    omitted = len(index.cases) - len(cases)
    return cases, (f"{omitted} cases have no {what} and are left out",) if omitted else ()


def _is_labelled(case: Case) -> bool:
    """Whether a case has a label, or several of which nobody knows which one is meant."""
    return case.label is not None or bool(case.masks) or (case.fault is not None and case.fault.of_label)


def _check_targets(cases: Iterable[Case], classes: int | None) -> None:
    for case in cases:
        if classes is not None and case.target is not None and case.target >= classes:
            raise DataError(
                f"case {case.token}: its target is no class of the task, which has {classes}; "
                "correct the column 'target'"
            )


def require_training_cases(index: Index, cases: Iterable[Case]) -> None:
    """Raise if none of the cases that a task can use is a training case.

    Raises:
        DataError: saying what the site has instead.
    """
    if not any(case.split == "train" for case in cases):
        raise DataError(
            f"the site has no training case ({index.describe()}); mark some as 'train' in the column 'split'"
        )


def without_refused(cases: Iterable[Case], refused: Iterable[RefusedCase]) -> tuple[Case, ...]:
    """Return the cases that were not refused."""
    tokens = {one.case.token for one in refused}
    return tuple(case for case in cases if case.token not in tokens)


def check_training(
    index: Index,
    refused: Sequence[RefusedCase],
    bears: Unreadable,
    needs: str | None = None,
    classes: int | None = None,
    labelled: Container[str] = frozenset(),
    trains: bool = True,
) -> tuple[Case, ...]:
    """Return the cases that this site takes part with, given those that cannot be read.

    Without `needs` there is no study yet, and every case counts. A site that only measures (`trains` is
    false) needs no training case.

    Raises:
        DataError: as training does.
    """
    cases = index.cases if needs is None else usable_cases(index, needs, classes, labelled)[0]
    tokens = {case.token for case in cases}
    unusable = [one for one in refused if one.case.token in tokens]
    refuse_excess(unusable, len(cases), bears)
    used = without_refused(cases, unusable)
    if trains:
        require_training_cases(replace(index, cases=without_refused(index.cases, unusable)), used)
    return used


def screen_cases(
    cases: Iterable[Case],
    read: Callable[[Case], NDArray[np.generic]],
    progress: Callable[[int], None] = lambda done: None,
) -> Screening:
    """Return what reading each case shows; `read` returns the voxels of a case's image or refuses it."""
    refused: list[RefusedCase] = []
    digests: list[tuple[Case, bytes]] = []
    for done, case in enumerate(cases, start=1):
        image = _read_or_refuse(case, read)
        if isinstance(image, DataError):
            refused.append(RefusedCase(case, reason_of(image), str(image)))
        else:
            if image.size and image.min() < image.max():
                digests.append((case, image_digest(image)))
        progress(done)
    return Screening(tuple(refused), tuple(digests))


def _read_or_refuse(
    case: Case, read: Callable[[Case], NDArray[np.generic]]
) -> NDArray[np.generic] | DataError:
    try:
        return read(case)
    except DataError as error:
        return error
    except Exception as error:  # noqa: BLE001 - what one file does to a library must not cost the other cases
        # The message of another library's error may quote the file's content; its type cannot.
        place = place_in_plugin(error)
        where = f" ({place})" if place else ""
        return ImageError(f"case {case.token}: preparing it ended in {type(error).__name__}{where}")


def image_digest(image: NDArray[np.generic]) -> bytes:
    """Return the digest of a prepared image, by which a run knows the cases that trained."""
    # A cache on disk holds half precision. Readers lay X out fastest: the transposed array is mostly a view.
    with np.errstate(over="ignore"):
        image = image.astype(np.float16, copy=False)
    sha = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    sha.update(np.ascontiguousarray(image.T).data)
    return sha.digest()


def refuse_excess(refused: Sequence[RefusedCase], cases: int, bears: Unreadable) -> None:
    """Raise if more cases were refused than the site's policy bears, or none is left.

    Raises:
        DataError: with the counts by reason and the first case's own message.
    """
    if not refused:
        return
    first = refused[0].message
    if not bears.skip:
        raise DataError(f"{first}; this site leaves no case out (unreadable.skip is false)")
    most = math.ceil(bears.max_share * cases)
    found = f"{len(refused)} of {cases} cases cannot be used ({in_words(count_reasons(refused))})"
    if len(refused) > most:
        raise DataError(
            f"{found}, and at most {most} may be left out (unreadable.max_share is {bears.max_share:g}); "
            "restore or repair them, remove them from the folder, or raise unreadable.max_share. "
            f"The first: {first}"
        )
    if len(refused) == cases:
        raise DataError(f"{found}, and none is left; restore or repair them. The first: {first}")


def count_reasons(refused: Iterable[RefusedCase]) -> dict[str, int]:
    """Return how many cases were refused for each reason, the most frequent first."""
    return dict(Counter(one.reason for one in refused).most_common())


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts by reason as text, such as '2 image missing, 1 label unreadable'."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def left_out_line(counts: Mapping[str, int], cases: int) -> str:
    """Return the line that tells how many cases were left out and why."""
    return f"{sum(counts.values())} of {cases} cases are left out, as they cannot be used: {in_words(counts)}"


def duplicate_lines(digests: Iterable[tuple[Case, bytes]]) -> tuple[str, ...]:
    """Return a line for images that are in several splits and one for those of several patients."""
    same: dict[bytes, list[Case]] = defaultdict(list)
    for case, digest in digests:
        same[digest].append(case)
    repeated = [cases for cases in same.values() if len(cases) > 1]
    lines = []
    if across := sum(len({case.split for case in cases}) > 1 for cases in repeated):
        lines.append(
            f"{across} image{'s are' if across > 1 else ' is'} in several splits under different cases: "
            "scores on them are of images that the model may have trained on"
        )
    if shared := sum(len({case.patient for case in cases}) > 1 for cases in repeated):
        lines.append(
            f"{shared} image{'s are' if shared > 1 else ' is'} listed under several patients: all but one "
            "of them are wrong"
        )
    return tuple(lines)


def write_refused(refused: Sequence[RefusedCase], folder: str, site_secret: bytes, cache: str | None) -> str:
    """Write the refused cases into the site's own notes, and return words that tell where they are."""
    from pathlib import Path

    heading = ("token", "case", "split", "reason", "message")
    rows = [(one.case.token, one.case.id, one.case.split, one.reason, one.message) for one in refused]
    try:
        place = write_note(Path(folder), site_secret, NOTE, heading, rows, Path(cache) if cache else None)
    except OSError as error:
        return f"their list could not be written (errno {error.errno}); `medfed check` shows it"
    return f"the hospital's own list is in {place}"


def unreadable_files(error: OSError, case: Case) -> ImageError:
    """Return a refusal in place of a file system's error, whose own message names the path."""
    remedy = "check the disk and the file's permissions"
    return of_case(
        ImageError(f"the file system could not read its files (errno {error.errno}); {remedy}"), case.token
    )
