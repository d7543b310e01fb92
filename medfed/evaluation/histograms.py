"""ROC and calibration curves from binned counts that may leave a hospital and can be pooled.

Each hospital counts its patients with and without the disease in bins of predicted risk. A bin is a group of
patients like any other: before it is sent, neighbouring bins are merged until each contains at least
`min_patients` patients. Bins may differ between hospitals; the pooled histogram contains all of them.

The loss of precision is known. A pair of patients whose bins overlap may be ranked either way, so the pooled
AUROC is at least the share of pairs that are certainly ranked correctly, and at most that share plus the
share of uncertain pairs. `auroc_bounds` returns both bounds, and the value for patients spread evenly within
their bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from medfed.errors import DECODING_ERRORS, DataError, RunError
from medfed.evaluation.classification import check_binary
from medfed.evaluation.intervals import Floats, wilson
from medfed.evaluation.rows import ALL_SITES

MAX_BINS = 100
# Thresholds from one edge to the next at which precision is drawn, as it does not change in a straight line.
PRECISION_STEPS = 8


class Bin(msgspec.Struct, frozen=True, array_like=True):
    """Patients with `low <= p < high`: counts with and without the class, and the sum of p as `risk`.

    The last bin also includes p = 1.
    """

    low: float
    high: float
    positives: int
    negatives: int
    risk: float

    @property
    def n(self) -> int:
        return self.positives + self.negatives


class ScoreHistogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts of one site's patients by one model's predicted probability of one class."""

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
    """Bounds `low` and `high` on the area under the pooled ROC curve, and the estimate between them."""

    value: float
    low: float
    high: float


class Reliability(NamedTuple):
    """One group's mean predicted risk, observed proportion with Wilson's interval, and number of patients."""

    predicted: float
    observed: float
    low: float
    high: float
    n: int


def count_scores(
    probabilities: ArrayLike, targets: ArrayLike, min_patients: int = 1, bins: int = MAX_BINS
) -> tuple[Bin, ...]:
    """Return the bins of one hospital's patients, coarse enough to be sent to the hub.

    There are none if there are fewer than `min_patients` patients in total.
    """
    p, y = check_binary(probabilities, targets)
    edges = np.arange(bins + 1) / bins
    # Bins are assigned by comparing p with the edges, because p * bins may be rounded differently.
    bin_index = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    ups, downs = np.bincount(bin_index[y], minlength=bins), np.bincount(bin_index[~y], minlength=bins)
    risks = np.bincount(bin_index, weights=p, minlength=bins)
    columns = (edges[:-1], edges[1:], ups, downs, risks)
    fine = [Bin(*cell) for cell in zip(*(column.tolist() for column in columns), strict=True)]
    return coarsen(fine, min_patients)


def coarsen(fine: Iterable[Bin], min_patients: int) -> tuple[Bin, ...]:
    """Return the bins, merged with their neighbours until each contains at least `min_patients` patients."""
    coarse: list[Bin] = []
    open_: Bin | None = None
    for cell in fine:
        open_ = cell if open_ is None else _joined(open_, cell)
        if open_.n >= max(min_patients, 1):
            coarse.append(open_)
            open_ = None
    if open_ is not None and open_.n > 0 and coarse:
        # The remainder is too small to be a bin of its own.
        coarse.append(_joined(coarse.pop(), open_))
    return tuple(coarse)


def _joined(first: Bin, second: Bin) -> Bin:
    return Bin(
        first.low,
        second.high,
        first.positives + second.positives,
        first.negatives + second.negatives,
        first.risk + second.risk,
    )


def merged(histograms: Iterable[ScoreHistogram], site: str = ALL_SITES) -> ScoreHistogram:
    """Return the pooled histogram of several hospitals, independent of their order.

    Raises:
        DataError: there are no histograms, or their rounds, splits, models or classes differ.
    """
    every = list(histograms)
    if not every:
        raise DataError("no histograms to merge")
    if len({(h.round, h.split, h.model, h.structure) for h in every}) > 1:
        raise DataError("histograms of different rounds, splits, models or classes cannot be pooled")
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
    """Return bounds on the AUROC over the pooled patients, or None if all have the same outcome."""
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
    """Return [i, j], the probability that a patient in bin i ranks above one in bin j.

    Patients are assumed to be spread evenly within their bins.
    """
    start, stop = low[None], high[None]

    def area(x: Floats) -> Floats:
        inside = np.clip(x[:, None], start, stop) - start
        return np.asarray(inside**2 / (2 * (stop - start)) + np.maximum(x[:, None] - stop, 0.0))

    return np.asarray((area(high) - area(low)) / (high - low)[:, None])


def _above(histogram: ScoreHistogram, steps: int = 1) -> tuple[Floats, Floats, Floats]:
    """Return all edges, and the numbers of patients with and without the class above each of them.

    Patients are assumed to be spread evenly within their bins. With more `steps` from one edge to the next,
    there are thresholds between them, too.
    """
    low, high, ups, downs = _columns(histogram)
    edges = np.unique(np.concatenate([low, high]))
    edges = np.interp(np.arange((len(edges) - 1) * steps + 1) / steps, np.arange(len(edges)), edges)
    share = np.clip((high[None] - edges[:, None]) / (high - low)[None], 0.0, 1.0)
    return edges, share @ ups, share @ downs


def roc(histogram: ScoreHistogram) -> list[tuple[float, float]]:
    """Return (1 - specificity, sensitivity) at each edge, from the highest threshold to the lowest."""
    if not (histogram.positives and histogram.negatives):
        return []
    _, ups, downs = _above(histogram)
    points = zip(downs[::-1] / histogram.negatives, ups[::-1] / histogram.positives, strict=True)
    return [(float(x), float(y)) for x, y in points]


def precision_recall(histogram: ScoreHistogram) -> list[tuple[float, float]]:
    """Return (recall, precision) from the highest threshold with a patient above it to the lowest.

    Between edges both are of patients spread evenly: a straight line from edge to edge would be too high
    (Davis and Goadrich, ICML 2006).
    """
    if not histogram.positives:
        return []
    _, ups, downs = _above(histogram, PRECISION_STEPS)
    called = ups + downs
    points = zip(ups[::-1], called[::-1], strict=True)
    return [(float(up / histogram.positives), float(up / n)) for up, n in points if n > 0]


def reliability(histogram: ScoreHistogram, groups: int = 10) -> list[Reliability]:
    """Return predicted risk against observed proportion; bins are grouped by their mean predicted risk."""
    points = []
    for group in range(groups):
        cells = [b for b in histogram.bins if b.n and min(int(b.risk / b.n * groups), groups - 1) == group]
        n, ups = sum(cell.n for cell in cells), sum(cell.positives for cell in cells)
        if n:
            low, high = wilson(ups, n)
            points.append(Reliability(sum(cell.risk for cell in cells) / n, ups / n, low, high, n))
    return points


def net_benefit_of(histogram: ScoreHistogram) -> list[tuple[float, float, float]]:
    """Return (threshold, net benefit of the model, net benefit of treating everyone) at each inner edge."""
    n = histogram.positives + histogram.negatives
    if n == 0:
        return []
    points = []
    for edge, ups, downs in zip(*_above(histogram), strict=True):
        if 0.0 < edge < 1.0:
            odds = edge / (1 - edge)
            everyone = (histogram.positives - odds * histogram.negatives) / n
            points.append((float(edge), float((ups - odds * downs) / n), float(everyone)))
    return points


def read(path: Path) -> list[ScoreHistogram]:
    """Return the histograms in a file of JSON lines.

    Raises:
        RunError: a line is not a histogram.
    """
    try:
        return [msgspec.json.decode(line, type=ScoreHistogram) for line in path.read_bytes().splitlines()]
    except DECODING_ERRORS as error:
        raise RunError(f"{path.name}: not a file of histograms: {error}; restore the file") from error
