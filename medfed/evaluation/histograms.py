"""ROC and calibration from counts that may leave a hospital and add up over hospitals.

A hospital counts its patients with and without the disease in bins of predicted risk. A bin is a group of
patients like any other: before it leaves, neighbouring bins are joined until each holds at least
`min_patients` patients. Hospitals' bins need not be the same: the pooled histogram simply holds all of them.

How much the bins hide is known. A pair of patients whose bins overlap may be ranked either way, so the
pooled AUROC lies between the share of pairs that are surely ranked rightly and that share plus the pairs in
doubt; `auroc_bounds` returns both ends, and between them the value for patients spread evenly in their
bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from medfed.errors import DataError, RunError
from medfed.evaluation.classification import check_binary
from medfed.evaluation.intervals import Floats, wilson
from medfed.evaluation.rows import ALL_SITES
from medfed.files import write_whole

MAX_BINS = 100


class Bin(msgspec.Struct, frozen=True, array_like=True):
    """Patients with `low <= p < high` (the last bin also p = 1): with the class, without, and the sum of
    their p."""

    low: float
    high: float
    positives: int
    negatives: int
    risk: float

    @property
    def n(self) -> int:
        return self.positives + self.negatives


class ScoreHistogram(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's patients at one site, counted by the predicted probability of one class."""

    round: int
    site: str
    split: str
    model: str
    bins: tuple[Bin, ...]
    structure: str | None = None

    @property
    def positives(self) -> int:
        return sum(cell.positives for cell in self.bins)

    @property
    def negatives(self) -> int:
        return sum(cell.negatives for cell in self.bins)


class Bounds(NamedTuple):
    """The area under the pooled ROC curve lies between `low` and `high`."""

    value: float
    low: float
    high: float


class Reliability(NamedTuple):
    """One group's mean predicted risk, observed share with Wilson's interval, and patients."""

    predicted: float
    observed: float
    low: float
    high: float
    n: int


class ScoreLabels(NamedTuple):
    """Which patients a histogram counts, and for which class."""

    round: int
    site: str
    split: str
    model: str
    structure: str | None = None


def count_scores(
    probabilities: ArrayLike,
    targets: ArrayLike,
    labels: ScoreLabels,
    min_patients: int = 1,
    bins: int = MAX_BINS,
) -> ScoreHistogram:
    """Return the histogram of one hospital's patients, coarse enough to leave it.

    It has no bins where all patients together are fewer than `min_patients`.
    """
    p, y = check_binary(probabilities, targets)
    edges = np.arange(bins + 1) / bins
    # The place is decided by the edges and not by p * bins, whose rounding may differ from theirs.
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    ups, downs = np.bincount(place[y], minlength=bins), np.bincount(place[~y], minlength=bins)
    risks = np.bincount(place, weights=p, minlength=bins)
    fine = [
        Bin(float(edges[i]), float(edges[i + 1]), int(ups[i]), int(downs[i]), float(risks[i]))
        for i in range(bins)
    ]
    return ScoreHistogram(**labels._asdict(), bins=coarsen(fine, min_patients))


def coarsen(fine: Iterable[Bin], min_patients: int) -> tuple[Bin, ...]:
    """Return neighbouring bins joined until each holds `min_patients` patients or more (at least one)."""
    found: list[Bin] = []
    open_: Bin | None = None
    for cell in fine:
        open_ = cell if open_ is None else _joined(open_, cell)
        if open_.n >= max(min_patients, 1):
            found.append(open_)
            open_ = None
    if open_ is not None and open_.n > 0 and found:
        # What is left over is too small to stand alone.
        found.append(_joined(found.pop(), open_))
    return tuple(found)


def _joined(first: Bin, second: Bin) -> Bin:
    return Bin(
        first.low,
        second.high,
        first.positives + second.positives,
        first.negatives + second.negatives,
        first.risk + second.risk,
    )


def merged(histograms: Iterable[ScoreHistogram], site: str = ALL_SITES) -> ScoreHistogram:
    """Return the pooled histogram of several hospitals; their order does not matter."""
    every = list(histograms)
    if not every:
        raise DataError("no histograms to merge")
    if len({(h.round, h.split, h.model, h.structure) for h in every}) > 1:
        raise DataError("histograms of different rounds, splits, models or classes do not add up")
    cells = [cell for histogram in every for cell in histogram.bins]
    cells.sort(key=lambda cell: (cell.low, cell.high, cell.positives, cell.negatives, cell.risk))
    together: list[Bin] = []
    for cell in cells:
        if together and (together[-1].low, together[-1].high) == (cell.low, cell.high):
            together.append(_joined(together.pop(), cell))
        else:
            together.append(cell)
    return msgspec.structs.replace(every[0], site=site, bins=tuple(together))


def _columns(histogram: ScoreHistogram) -> tuple[Floats, Floats, Floats, Floats]:
    table = np.array([(b.low, b.high, b.positives, b.negatives) for b in histogram.bins], dtype=np.float64)
    low, high, ups, downs = table.reshape(-1, 4).T
    return low, high, ups, downs


def auroc_bounds(histogram: ScoreHistogram) -> Bounds | None:
    """Return between which values the pooled patients' AUROC lies, or None where one outcome is missing."""
    if not (histogram.positives and histogram.negatives):
        return None
    low, high, ups, downs = _columns(histogram)
    pairs = ups[:, None] * downs
    total = pairs.sum()
    surely_right, surely_wrong = low[:, None] >= high, high[:, None] <= low
    right = float(pairs[surely_right].sum() / total)
    most = float(1.0 - pairs[surely_wrong].sum() / total)
    value = float((pairs * _chance_above(low, high)).sum() / total)
    return Bounds(value, right, most)


def _chance_above(low: Floats, high: Floats) -> Floats:
    """Return the chance that a patient spread evenly in bin i is above one spread evenly in bin j."""
    start, stop = low[None], high[None]

    def area(x: Floats) -> Floats:
        inside = np.clip(x[:, None], start, stop) - start
        return np.asarray(inside**2 / (2 * (stop - start)) + np.maximum(x[:, None] - stop, 0.0))

    return np.asarray((area(high) - area(low)) / (high - low)[:, None])


def _above(histogram: ScoreHistogram) -> tuple[Floats, Floats, Floats]:
    """Return every edge, and how many patients with and without the class lie above it, spread evenly in
    bins."""
    low, high, ups, downs = _columns(histogram)
    edges = np.unique(np.concatenate([low, high]))
    share = np.clip((high[None] - edges[:, None]) / (high - low)[None], 0.0, 1.0)
    return edges, share @ ups, share @ downs


def roc(histogram: ScoreHistogram) -> list[tuple[float, float]]:
    """Return (1 - specificity, sensitivity) at every edge, from nobody called to everybody."""
    if not (histogram.positives and histogram.negatives):
        return []
    _, ups, downs = _above(histogram)
    points = zip(downs[::-1] / histogram.negatives, ups[::-1] / histogram.positives, strict=True)
    return [(float(x), float(y)) for x, y in points]


def reliability(histogram: ScoreHistogram, groups: int = 10) -> list[Reliability]:
    """Return predicted risk against observed share, in bins put together by tenths of their mean risk."""
    found = []
    for place in range(groups):
        cells = [b for b in histogram.bins if b.n and min(int(b.risk / b.n * groups), groups - 1) == place]
        n, ups = sum(cell.n for cell in cells), sum(cell.positives for cell in cells)
        if n:
            low, high = wilson(ups, n)
            found.append(Reliability(sum(cell.risk for cell in cells) / n, ups / n, low, high, n))
    return found


def net_benefit_of(histogram: ScoreHistogram) -> list[tuple[float, float, float]]:
    """Return (threshold, net benefit of the model, of treating everyone) at every inner edge."""
    n = histogram.positives + histogram.negatives
    if n == 0:
        return []
    found = []
    for edge, ups, downs in zip(*_above(histogram), strict=True):
        if 0.0 < edge < 1.0:
            odds = edge / (1 - edge)
            everyone = (histogram.positives - odds * histogram.negatives) / n
            found.append((float(edge), float((ups - odds * downs) / n), float(everyone)))
    return found


def write(path: Path, histograms: Iterable[ScoreHistogram]) -> None:
    """Write histograms as JSON lines."""
    write_whole(
        path, b"".join(msgspec.json.encode(histogram) + b"\n" for histogram in histograms), durable=True
    )


def read(path: Path) -> list[ScoreHistogram]:
    """Return the histograms that `write` wrote."""
    try:
        return [msgspec.json.decode(line, type=ScoreHistogram) for line in path.read_bytes().splitlines()]
    except msgspec.MsgspecError as error:
        raise RunError(f"{path.name}: not histograms: {error}; restore the file") from error
