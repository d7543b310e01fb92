"""A gallery of the best, median and worst cases and of failures, in a file that stays in the hospital.

`write_gallery` writes `cases.html` into the run folder, which has patients' images and case tokens, and
`outlines.json`, the contours of the worst and the median case without image and token, for `own_report`.
They must not be sent with the report, as the page's first line says. Each case is shown in three planes
through the largest section of the reference, or of the prediction if the reference is empty. Planes are in
radiological orientation (the patient's right on the left, anterior or superior on top) with true proportions
in mm. The outline of the reference is dashed, that of the prediction coloured.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.errors import DECODING_ERRORS, RunError
from medfed.evaluation.report.templates import render
from medfed.evaluation.rows import FEDERATED, CaseRow, read_cases, unperturbed
from medfed.evaluation.segmentation import FALSE_POSITIVE, MISSED
from medfed.files import write_whole
from medfed.runs.folder import RunFolder
from medfed.wire.untrusted_text import for_html

# The longer side of an image, in pixels of the page.
MAX_SIDE_PX = 300.0
# Intensities between these percentiles span black to white, so that a bright voxel does not darken the rest.
WINDOW_PERCENTILES = (1.0, 99.5)
# The number of shown cases in which a structure was missed or invented.
MAX_FAILURES = 12

# Each plane: its name, the axis that is cut, and the sides on the left and on top of the image.
PLANES = (("axial", 2, "R", "A"), ("coronal", 1, "R", "S"), ("sagittal", 0, "A", "S"))


class CaseImages(NamedTuple):
    """One case's arrays, all (X, Y, Z) on one grid, with the grid's RAS affine in mm."""

    image: NDArray[np.floating]
    prediction: NDArray[np.integer]
    reference: NDArray[np.integer]
    affine_ras: NDArray[np.floating]


class ChosenCase(NamedTuple):
    """A case to show, and the reason."""

    token: str
    why: str
    site: str
    score: float | None


class Outlined(msgspec.Struct, frozen=True):
    """The contours of one case in one plane, without its image."""

    title: str
    plane: str
    svg: str


def read_outlines(folder: RunFolder) -> list[Outlined]:
    """Return the contours of a run's worst and median case; none where no gallery was written.

    Raises:
        RunError: if the file is damaged.
    """
    if not folder.outlines.is_file():
        return []
    try:
        return msgspec.json.decode(folder.outlines.read_bytes(), type=list[Outlined])
    except DECODING_ERRORS as error:
        raise RunError(f"{folder.outlines.name}: cannot be read: {error}; restore the file") from error


def choose_cases(cases: Sequence[CaseRow]) -> list[ChosenCase]:
    """Return the federated model's worst, median and best test cases by mean Dice, then those with a failure.

    A failure is a structure that is missed or invented.
    """
    scores: dict[tuple[str, str], list[float]] = {}
    failed: dict[tuple[str, str], str] = {}
    for case in cases:
        if (case.model, case.split, case.metric) == (FEDERATED, "test", "dice"):
            scores.setdefault((case.site, case.case), [])
            if case.value is not None:
                scores[case.site, case.case].append(case.value)
            if case.note in (MISSED, FALSE_POSITIVE):
                failed[case.site, case.case] = f"{case.structure} {case.note}"
    known = {key: float(np.mean(values)) for key, values in scores.items() if values}
    ranked = sorted(known, key=lambda key: (known[key], key))
    reasons: dict[tuple[str, str], str] = {}
    if ranked:
        middle = (len(ranked) - 1) // 2
        for reason, key in (("worst", ranked[0]), ("median", ranked[middle]), ("best", ranked[-1])):
            reasons.setdefault(key, reason)
    for key in sorted(failed)[:MAX_FAILURES]:
        reasons[key] = f"{reasons[key]}; {failed[key]}" if key in reasons else failed[key]
    return [ChosenCase(token, why, site, known.get((site, token))) for (site, token), why in reasons.items()]


def write_gallery(
    run: Path,
    load: Callable[[str, str], CaseImages],
    structures: Mapping[int, str],
    sites: Sequence[str] | None = None,
) -> Path:
    """Write `cases.html` into the run folder, one case in memory at a time, and return its path.

    Args:
        run: a run folder with case rows.
        load: returns the arrays of a case, given its site and token.
        structures: label value -> name.
        sites: the hospitals whose cases are shown; None for all.

    Raises:
        RunError: if the run has no case rows; they may be in another hospital.
    """
    folder = RunFolder(run)
    if not folder.cases.is_file():
        raise RunError(
            f"{run.name}: no cases.jsonl in this folder; local pages are made in the hospital that measured"
        )
    cases = unperturbed(read_cases(folder.cases))
    sections, drawn = [], []
    for choice in choose_cases([case for case in cases if sites is None or case.site in sites]):
        title = _title(choice)
        figures = planes(shown := load(choice.site, choice.token), title, structures)
        sections.append((title, figures))
        if choice.why.startswith(("worst", "median")):
            nameless = _title(choice, named=False)
            drawn += [Outlined(nameless, *planes(shown, nameless, structures, with_image=False)[0])]
    write_whole(folder.outlines, msgspec.json.encode(drawn), durable=True)
    write_whole(folder.gallery, render("gallery.html.jinja", sections=sections), durable=True)
    return folder.gallery


def _title(choice: ChosenCase, named: bool = True) -> str:
    score = "" if choice.score is None else f", Dice {choice.score:.2f}"
    case = f"case {choice.token}" if named else "a case"
    return f"{choice.why[0].upper()}{choice.why[1:]}: {case} of {choice.site}{score}"


def planes(
    shown: CaseImages, title: str, structures: Mapping[int, str], with_image: bool = True
) -> list[tuple[str, str]]:
    """Return the name and the figure of each plane."""
    image, prediction, reference, spacing_mm = canonical(shown)
    labels = list(structures)
    marked = np.isin(reference, labels)
    if not marked.any():
        marked = np.isin(prediction, labels)
    low, high = (float(value) for value in np.percentile(image, WINDOW_PERCENTILES))
    figures = []
    for name, axis, left, top in PLANES:
        others = tuple(other for other in range(3) if other != axis)
        if min(image.shape) == 1 and image.shape[axis] > 1:
            continue  # an image of one plane is a line from its sides
        sums = marked.sum(axis=others)
        cut = int(np.argmax(sums)) if sums.any() else image.shape[axis] // 2
        across, down = spacing_mm[others[0]], spacing_mm[others[1]]
        slices = [_radiological(np.take(array, cut, axis=axis)) for array in (image, prediction, reference)]
        window = (low, high) if with_image else None
        figure = _figure(slices, (across, down), window, labels, (left, top), f"{title}, {name}")
        figures.append((name, figure))
    return figures


def canonical(
    shown: CaseImages,
) -> tuple[NDArray[np.floating], NDArray[np.integer], NDArray[np.integer], tuple[float, ...]]:
    """Return the arrays with axes nearest to right, anterior, superior, and the spacing along them in mm."""
    from nibabel import orientations

    turn = orientations.io_orientation(shown.affine_ras)  # type: ignore[no-untyped-call]  # nibabel
    image, prediction, reference = (
        orientations.apply_orientation(array, turn)  # type: ignore[no-untyped-call]  # nibabel
        for array in shown[:3]
    )
    spacing = np.linalg.norm(np.asarray(shown.affine_ras)[:3, :3], axis=0)
    along = [float(spacing[int(np.flatnonzero(turn[:, 0] == axis)[0])]) for axis in range(3)]
    return image, prediction, reference, tuple(along)


def _radiological(plane: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a plane in radiological orientation, (row, column): both axes are reversed."""
    return plane[::-1, ::-1].T


def _figure(
    slices: Sequence[NDArray[np.generic]],
    spacing_mm: tuple[float, float],
    window: tuple[float, float] | None,
    labels: Sequence[int],
    sides: tuple[str, str],
    title: str,
) -> str:
    image, prediction, reference = slices
    rows, columns = image.shape
    scale = MAX_SIDE_PX / max(columns * spacing_mm[0], rows * spacing_mm[1])
    across, down = spacing_mm[0] * scale, spacing_mm[1] * scale
    width, height = columns * across, rows * down
    lines = []
    for mask, name in ((reference, "reference-line"), (prediction, "prediction-line")):
        for label in labels:
            for line in outlines(mask == label):
                points = " ".join(f"{x * across:.1f},{y * down:.1f}" for x, y in line)
                lines.append(f'<polyline class="{name}" points="{points}"/>')
    below = (
        ""
        if window is None
        else (
            f'<image width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{_png(image, window)}"/>'
        )
    )
    return (
        f'<svg viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{for_html(title)}">{below}{"".join(lines)}'
        f'<text class="side" x="4" y="{height / 2:.1f}">{sides[0]}</text>'
        f'<text class="side" x="{width / 2:.1f}" y="13">{sides[1]}</text></svg>'
    )


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return closed lines of (column, row) around a mask; pixel (0, 0) covers 0 to 1 both ways."""
    from contourpy import contour_generator

    padded = np.pad(mask.astype(np.float64), 1)
    return [np.asarray(line) - 0.5 for line in contour_generator(z=padded).lines(0.5)]


def _png(image: NDArray[np.generic], window: tuple[float, float]) -> str:
    from matplotlib.image import imsave

    data = io.BytesIO()
    top = window[1] if window[1] > window[0] else window[0] + 1.0
    imsave(data, np.asarray(image, dtype=np.float64), cmap="gray", vmin=window[0], vmax=top, format="png")
    return base64.b64encode(data.getvalue()).decode()
