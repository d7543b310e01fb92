"""Words of the report that not every reader knows: shown on hover, and as a list that is printed.

A term stands once, in the form in which pages have it. Metrics describe themselves (`Metric.description`). A
word with a meaning on hover is a link to the list, as fingers do not hover.
"""

from __future__ import annotations

import html
import re

from medfed.evaluation.metrics import MetricFamily, families
from medfed.wire.untrusted_text import for_html

TERMS = {
    "95 % interval": "of 100 such intervals, each from other such patients, about 95 hold the true value",
    "AUROC": "the chance that a patient with the disease is ranked above one without it; 0.5 is chance",
    "BCa": "bootstrap interval that is corrected for bias and skew (Efron 1987)",
    "bootstrap": "the patients are drawn again with replacement, many times, to see how much a value varies",
    "Brier score": "mean squared error of predicted probabilities; 0 is perfect",
    "CI": "confidence interval, here always the 95 % interval",
    "c-index": "the share of pairs of patients whose order of events was predicted correctly; 0.5 is chance",
    "calibration slope": "1 if predicted and observed risk agree; below 1 the model is too sure of itself",
    "DeLong": "test and interval of an area under the ROC curve (DeLong 1988)",
    "Dice": "overlap of the predicted and the reference outline; 1 is the same, 0 is none",
    "ECE": "expected calibration error: how far predicted and observed risk differ, on average",
    "epsilon": "how much one patient's data can change what is sent; smaller is more private",
    "federated": "trained by exchanging model updates between hospitals, while data stay where they are",
    "HD95": "distance in mm below which 95 % of the outline's points lie from the other outline",
    "held out": "the hospital took no part in training and was only tested",
    "Holm": "correction of p values for several comparisons at once",
    "limits of agreement": "95 % of single differences lie between them (Bland and Altman 1986)",
    "net benefit": "true positives minus false positives, weighed by the threshold's odds (Vickers 2006)",
    "p": "the chance of a difference at least this large if there were none",
    "pooled": "over the patients of several hospitals together; of a model: trained on them in one place",
    "precision": "of those in whom it is found, the share who have it",
    "recall": "the same as sensitivity",
    "round": "one exchange: the hub sends the model, hospitals train on it, the hub merges what they send",
    "sensitivity": "of those who have it, the share in whom it is found",
    "sign-flip": "test of a paired difference: the patients' differences change sign at random",
    "specificity": "of those who have it not, the share in whom nothing is found",
    "surface Dice": "the share of both outlines that lies within a tolerance of the other",
    "untrained": "the model before any training, as a floor",
    "Wilson": "interval of a proportion that holds in small samples, too",
}


def definition(word: str) -> str:
    """Return what a word of the report means, or '' if it is none of the terms."""
    lowered = word.lower()
    return next((text for term, text in TERMS.items() if term.lower() == lowered), "") or _of_metric(word)


def _of_metric(title: str) -> str:
    for family in families(MetricFamily):
        for metric in family.metrics:
            if metric.title == title:
                return metric.description
    return ""


def term(word: str) -> str:
    """Return a word as HTML, with what it means on hover and a link to the glossary, if it is a term."""
    meaning = definition(word)
    shown = for_html(word)
    if not meaning:
        return shown
    return f'<a class="term" href="#{anchor(word)}"><abbr title="{for_html(meaning)}">{shown}</abbr></a>'


def anchor(word: str) -> str:
    """Return the name of a word's place in the glossary."""
    return "term-" + re.sub(r"\W+", "-", word.lower()).strip("-")


def glossary(page: str) -> list[tuple[str, str]]:
    """Return the terms of a page's text and all that it explains on hover, in alphabetical order."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)
    linked = re.findall(r'<a class="term" href="[^"]*"><abbr title="([^"]*)">([^<]*)</abbr>', page)
    words = {anchor(word): (html.unescape(word), html.unescape(meaning)) for meaning, word in linked}
    words |= {
        anchor(word): (word, meaning)
        for word, meaning in TERMS.items()
        if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I if len(word) > 1 else 0)
    }
    return sorted(words.values(), key=lambda item: item[0].lower())
