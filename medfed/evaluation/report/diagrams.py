"""ROC, precision-recall, reliability and decision curves, drawn from histograms of predicted risk."""

from __future__ import annotations

from typing import Any

from medfed.evaluation import histograms
from medfed.evaluation.histograms import Bounds, ScoreHistogram
from medfed.evaluation.report import charts
from medfed.evaluation.report.focus import Focus
from medfed.evaluation.report.formatting import number, site_name
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import ALL_SITES, FEDERATED

# With bounds on the AUROC further apart than this, a curve would show the bins and not the model.
MAX_AUROC_GAP = 0.5
# Where fewer have the class, an ROC curve looks better than the calls are, and precision and recall are drawn
# beside it (Saito and Rehmsmeier, PLOS ONE 2015, 10:e0118432; that one in five is few is our choice).
RARE_SHARE = 0.2
_DIAGONAL = ((0.0, 0.0), (1.0, 1.0))


def diagrams(run: Run, focus: Focus) -> list[dict[str, Any]]:
    """Return the federated model's diagrams by class, at each held-out hospital and over the others."""
    some = [h for h in run.curves if h.model == FEDERATED and h.split == focus.split]
    drawn = []
    for structure in sorted({h.structure for h in some}, key=lambda name: name or ""):
        its = [h for h in some if h.structure == structure]
        groups = [(h.site, h) for h in its if h.site in run.facts.held_out]
        pooled = [h for h in its if h.site not in run.facts.held_out]
        if pooled:
            groups.append((ALL_SITES, histograms.merged(pooled)))
        for site, histogram in groups:
            if (bounds := histograms.auroc_bounds(histogram)) is not None:
                drawn.append(_diagram(site, histogram, bounds))
    return drawn


def _diagram(site: str, histogram: ScoreHistogram, bounds: Bounds) -> dict[str, Any]:
    diagram = {"site": site, "structure": histogram.structure, "bounds": bounds, "bins": len(histogram.bins)}
    if bounds.high - bounds.low > MAX_AUROC_GAP:
        return diagram
    roc = charts.square(
        f"ROC curve at {site_name(site)}, area {number(bounds.value)}",
        ("1 − specificity", "Sensitivity"),
        [("dashed", _DIAGONAL), ("strong", histograms.roc(histogram))],
    )
    reliability, decision = _reliability(site, histogram), _decision(site, histogram)
    share = histogram.positives / (histogram.positives + histogram.negatives)
    recall = _precision_recall(site, histogram, share) if share < RARE_SHARE else ""
    return diagram | {
        "roc": roc, "reliability": reliability, "decision": decision, "recall": recall, "share": share,
    }  # fmt: skip


def _precision_recall(site: str, histogram: ScoreHistogram, share: float) -> str:
    points = histograms.precision_recall(histogram)
    return charts.square(
        f"Precision and recall at {site_name(site)}, {number(share)} of the patients have it",
        ("Recall (sensitivity)", "Precision"),
        [("dashed", ((0.0, share), (1.0, share))), ("strong", points)],
    )


def _reliability(site: str, histogram: ScoreHistogram) -> str:
    bins = histograms.reliability(histogram)
    texts = "; ".join(f"predicted {number(b.predicted)}, observed {number(b.observed)}" for b in bins)
    return charts.square(
        f"Reliability at {site_name(site)}: {texts}",
        ("Predicted risk", "Observed share"),
        [("dashed", _DIAGONAL), ("strong thin", [(b.predicted, b.observed) for b in bins])],
        [(b.predicted, b.observed, b.low, b.high) for b in bins],
    )


def _decision(site: str, histogram: ScoreHistogram) -> str:
    """Return the decision curve, or nothing where there is a single threshold."""
    benefit = histograms.net_benefit_of(histogram)
    if len(benefit) < 2:
        return ""
    prevalence = histogram.positives / max(histogram.positives + histogram.negatives, 1)
    top = max([prevalence, *(model for _, model, _ in benefit)], default=1.0) or 1.0
    return charts.square(
        f"Decision curve at {site_name(site)}, net benefit at {len(benefit)} thresholds",
        ("Threshold probability", "Net benefit"),
        [
            ("dashed", [(x, everyone) for x, _, everyone in benefit if everyone >= -0.1 * top]),
            ("dotted", [(0.0, 0.0), (1.0, 0.0)]),
            ("strong", [(x, model) for x, model, _ in benefit]),
        ],
        y_axis=(-0.1 * top, 1.1 * top),
    )
