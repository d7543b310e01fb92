"""Which diagrams are drawn: one per class at each held-out hospital, and one over all the others."""

from __future__ import annotations

import pytest

from medfed.evaluation.histograms import Bin, ScoreHistogram
from medfed.evaluation.report.diagrams import diagrams
from medfed.evaluation.report.focus import Focus
from medfed.runs.facts import RunFacts

from .result_rows import run_of

FOCUS = Focus("auroc", None, "test", 1, ["west"])
SEPARATED = (Bin(0, 0.5, 0, 2, 0.5), Bin(0.5, 1, 3, 0, 2.5))


def histogram(site, bins=SEPARATED, split="test", model="federated", structure="disease"):
    return ScoreHistogram(1, site, split, model, bins, structure)


def diagrams_of(*curves):
    return diagrams(run_of(RunFacts(held_out=["west"]), curves=curves), FOCUS)


def test_held_out_hospitals_have_their_own_diagram_and_the_others_one_together():
    drawn = diagrams_of(*(histogram(site) for site in ("north", "south", "west")))
    assert [(d["site"], d["structure"]) for d in drawn] == [("west", "disease"), ("all", "disease")]
    # North's and south's bins are kept apart in the pool; every positive is ranked above every negative.
    assert [tuple(d["bounds"]) for d in drawn] == [(1.0, 1.0, 1.0)] * 2


def test_other_models_and_splits_have_no_diagram():
    assert diagrams_of(histogram("west", split="val"), histogram("west", model="pooled")) == []


def test_bins_that_allow_any_order_of_the_patients_are_not_drawn():
    """One bin hides the rank of its five patients, so the area may be anything from 0 to 1."""
    (diagram,) = diagrams_of(histogram("west", (Bin(0, 1, 3, 2, 2.5),)))
    assert (diagram["bounds"].low, diagram["bounds"].high) == (0.0, 1.0)
    assert "roc" not in diagram


def test_a_drawn_diagram_names_its_figures():
    (diagram,) = diagrams_of(histogram("west"))
    assert 'aria-label="ROC curve at west, area 1.000"' in diagram["roc"]
    # Mean predicted risk 0.5 / 2 and 2.5 / 3, of which none and all have the disease.
    assert (
        'aria-label="Reliability at west: predicted 0.250, observed 0.000; predicted 0.833, observed 1.000"'
        in diagram["reliability"]
    )


@pytest.mark.parametrize("bins", [(Bin(0, 1, 3, 0, 2.5),), (Bin(0, 1, 0, 3, 0.5),)])
def test_patients_of_one_class_have_no_diagram(bins):
    assert diagrams_of(histogram("west", bins)) == []


RARE = (Bin(0, 0.5, 1, 18, 5.0), Bin(0.5, 1, 3, 3, 4.0))


def test_precision_and_recall_are_drawn_where_few_have_the_class():
    """4 of 25 have it: 0.16. 5 of 25 are a fifth, where the ROC curve stands alone."""
    (rare,) = diagrams_of(histogram("west", RARE))
    assert 'aria-label="Precision and recall at west, 0.160 of the patients have it"' in rare["recall"]
    assert rare["share"] == 0.16
    (common,) = diagrams_of(histogram("west", (Bin(0, 0.5, 1, 17, 5.0), Bin(0.5, 1, 4, 3, 4.0))))
    assert common["recall"] == ""
