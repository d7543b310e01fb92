"""The clinician's page: what was asked, on whom, the answer, and what follows from it and what does not.

It is printed on one side of A4, before everything else. Each sentence follows from the run's own rows.
"""

from __future__ import annotations

import re
from typing import Any

from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patients import OVERLAP, RIGHTLY_EMPTY
from medfed.evaluation.report.focus import Focus, FocusRows, counted_of_those_concerned
from medfed.evaluation.report.formatting import (
    DAGGER,
    interval,
    is_narrow,
    is_small_sample,
    model_name,
    number,
    site_name,
)
from medfed.evaluation.report.glossary import definition
from medfed.evaluation.report.guarantees import caveat, relied_on
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import FEDERATED, POOLED, Row

# The metrics below the answer, in words that a ward uses of what is looked for, if the run has them.
COUNTS = (
    ("missed", "patients in whom {what} was missed altogether"),
    ("lesion_sensitivity", "share of a patient's lesions found"),
    ("rightly_empty", "patients without {what} rightly left empty"),
    ("false_positives", "false positive lesions per case"),
    ("sensitivity", "sensitivity, of patients with {what}"),
    ("specificity", "specificity, of patients without {what}"),
    ("events", "events{event}"),
)
# Differences with a smaller p value, corrected over the models (Holm), count as more than chance.
SIGNIFICANT = 0.05
# A hospital or two fit on the page; the others have their columns below.
MAX_PLACES = 3
# So many structures or classes have lines of their own on the page.
MAX_STRUCTURES = 4
# The headline metrics in plain words, of a value out of 100 pairs; 50 of them are right by chance alone.
PAIRS = {
    "auroc": "Of two patients, one with {what} and one without, it gives the one with it the higher risk in "
    "about {of} of 100 such pairs; a coin's toss is right in 50.",
    "c_index": "Of two patients it names the one with the earlier event in about {of} of 100 such pairs; a "
    "coin's toss is right in 50.",
}
CHANCE = 0.5
# What a proportion's method says of its threshold and of the patients behind it (metrics/confusion.py).
THRESHOLD = re.compile(r"threshold ([^,;]+), ([^;]+)")
OF_PATIENTS = re.compile(r"\b(\d+ of \d+)$")


def summary(run: Run, focus: Focus | None) -> dict[str, Any] | None:
    """Return the page's parts for the template, or None without a result."""
    if focus is None or not focus.places:
        return None
    rows, places = focus.rows(run.rows), focus.places[:MAX_PLACES]
    shown = [rows.valued(place, FEDERATED) for place in places]
    return {
        "asked": _asked(run, focus),
        "whom": _whom(run, focus, places),
        "over": ", mean over structures" if focus.structure is None and _structures(run, focus) else "",
        "small": any(is_small_sample(row) for row in shown),
        "places": places,
        "answer": [_answer(row) for row in shown],
        "counts": _by_structure(run, focus, places) + _counts(run, focus, places),
        "meaning": _meaning(run, focus, shown[0]),
        "threshold": _threshold(run, focus, places[0]),
        "may": _may(run, focus, rows),
        "may_not": _may_not(run, focus, rows),
    }


def _structures(run: Run, focus: Focus) -> list[str]:
    return sorted({row.structure for row in run.rows if row.metric == focus.metric and row.structure})


def _quoted(names: list[str]) -> str:
    """Return names of others' making in quotes: “a”, “b” and “c”."""
    every = [f"“{name}”" for name in names[:MAX_STRUCTURES]]
    if more := len(names) - len(every):
        every.append(f"{more} more")
    return " and ".join(filter(None, (", ".join(every[:-1]), every[-1])))


def _what(run: Run, focus: Focus) -> str:
    """Return what is looked for: structures, or the class that patients have or not."""
    names = _structures(run, focus) or run.facts.classes[-1:]
    return _quoted(list(names)) if names else "it"


def _sought(run: Run, focus: Focus) -> str:
    """Return the one thing that the answer is about in quotes, or "it" where it is a mean over several."""
    if focus.structure is None and len(run.facts.classes) == 2 and not _structures(run, focus):
        return _what(run, focus)
    return _quoted([focus.structure]) if focus.structure else "it"


def _event(run: Run) -> str:
    """Return the column of the event whose time was predicted, in quotes, or '' where it is not known."""
    name = run.study.section("data").get("event")
    return f"“{name}”" if name else ""


def _meaning(run: Run, focus: Focus, row: Row | None) -> str:
    """Return what the headline's value says, in words of a ward; '' where the metric has none."""
    if row is None or row.value is None or focus.metric not in PAIRS:
        description = definition(focus.record.title)
        return f"{focus.record.title}: {description}." if description else ""
    what = _what(run, focus) if len(run.facts.classes) == 2 else "a class"
    return PAIRS[focus.metric].format(what=what, of=round(100 * row.value))


def _threshold(run: Run, focus: Focus, place: str) -> str:
    """Return at which threshold sensitivity and specificity are measured, and on whom it was chosen."""
    row = focus._replace(metric="sensitivity").rows(run.rows).valued(place, FEDERATED)
    chosen = THRESHOLD.search((row.method or "") if row is not None else "")
    return f"Sensitivity and specificity are at a threshold of {chosen[1]} ({chosen[2]})." if chosen else ""


def _by_structure(run: Run, focus: Focus, places: list[str]) -> list[tuple[str, list[str]]]:
    """Return each structure's value and misses, where the headline is a mean over several."""
    lines, counted = [], counted_of_those_concerned(run.rows)
    for structure in _structures(run, focus)[:MAX_STRUCTURES] if focus.structure is None else ():
        rows = focus._replace(structure=structure).rows(run.rows)
        missed = focus._replace(metric="missed", structure=structure).rows(counted)
        values = [rows.valued(place, FEDERATED) for place in places]
        lines.append((f"{structure}: {focus.record.title}", [_answer(row) for row in values]))
        counts = [_count(missed.valued(place, FEDERATED)) for place in places]
        if any(text != "–" for text in counts):
            lines.append((f"{structure}: patients in whom it was missed altogether", counts))
    return lines


def _asked(run: Run, focus: Focus) -> str:
    names, task, stays = list(run.facts.classes), run.facts.task, "no data leave them"
    if task == "segment":
        doing, stays = f"outline {_what(run, focus)}", "no image leaves its hospital"
    elif task == "survival":
        doing = f"rank patients by their risk of {_event(run) or 'the event'}"
    elif task == "pretrain":
        doing, stays = "learn from the images without labels", "no image leaves its hospital"
    elif task == "multilabel" or len(names) < 2:
        doing = f"tell who has {_quoted(names) if names else 'it'}"
    elif len(names) == 2:
        doing = f"tell {_quoted(names[1:])} from {_quoted(names[:1])}"
    else:
        doing = f"tell {_quoted(names)} apart"
    return f"Can one model {doing} at each of these hospitals, if {stays}?"


def _whom(run: Run, focus: Focus, places: list[str]) -> list[str]:
    """Return where the model was trained, and on how many patients it was tested at which place."""
    patients = focus._replace(metric="patients", structure=None).rows(run.rows)
    trained = ", ".join(run.trained) or "no hospital"
    told = f"{run.own_updates}; which hospitals' updates were merged, the hub's run folder says"
    lines = [f"{told}." if run.own else f"Trained at {trained}."]
    answers = focus.rows(run.rows)
    for place in places:
        answer = answers.valued(place, FEDERATED)
        row = patients.valued(place, FEDERATED) or answer
        if row is not None:
            apart = ", which took no part in training" if run.took_no_part(place) else ""
            other = "" if apart or focus.split != "test" else " who did not train it"
            having = _having(focus, answer, row)
            lines.append(f"Tested at {site_name(place)}{apart}: {row.n} patients{other}{having}.")
    return lines


def _having(focus: Focus, answer: Row | None, everyone: Row) -> str:
    """Return how many of the tested patients an overlap is of: those who have the structure."""
    if answer is None or not focus.structure or focus.metric != OVERLAP or answer.n == everyone.n:
        return ""
    return f", {answer.n} of them with “{focus.structure}”"


def _answer(row: Row | None) -> str:
    return "–" if row is None else f"{_value(row)} in {row.n}"


def _value(row: Row) -> str:
    """Return a value and its interval, with a dagger where that is of too few patients."""
    fine = is_narrow(row)
    dagger = DAGGER if is_small_sample(row) else ""
    spread = f" ({interval(row, fine=fine)}){dagger}" if row.low is not None else ""
    return f"{number(row.value, metric_of(row.metric), fine=fine)}{spread}"


def _counts(run: Run, focus: Focus, places: list[str]) -> list[tuple[str, list[str]]]:
    """Return what a patient feels of the model: missed, found, invented, for each place."""
    lines, counted = [], counted_of_those_concerned(run.rows)
    what, event = _sought(run, focus), f" ({_event(run)})" if _event(run) else ""
    for name, words in COUNTS:
        rows = focus._replace(metric=name, structure=focus.structure).rows(counted)
        cells = [_count(rows.valued(place, FEDERATED)) for place in places]
        if any(cell != "–" for cell in cells):
            lines.append((words.format(what=what, event=event), cells))
    return lines


def _count(row: Row | None) -> str:
    if row is None:
        return "–"
    if metric_of(row.metric).count:
        return f"{row.value:.0f} of {row.n}"
    if row.metric == RIGHTLY_EMPTY and (row.method or "").startswith("Wilson"):
        return f"{_value(row)}, {round((row.value or 0.0) * (row.n or 0))} of {row.n}"
    if row.metric in ("sensitivity", "specificity"):
        # It is of those with or without, not of all patients.
        behind = OF_PATIENTS.search(row.method or "")
        return _value(row) + (f", {behind[1]}" if behind else "")
    return _answer(row)


def _may(run: Run, focus: Focus, rows: FocusRows) -> list[str]:
    """Return what follows for patients like those tested."""
    place = focus.places[0]
    row = rows.valued(place, FEDERATED)
    sentences = []
    if row is not None and row.low is not None:
        title, alone = focus.record.title, ""
        if run.facts.task == "segment":
            title, alone = f"a mean {title}", "; single patients differ more"
        elif run.facts.task == "pretrain":
            title, alone = f"a mean {title.lower()}", "; single patients differ more"
        else:
            title = f"a{'n' if title[0] in 'AEIOU' else ''} {title}"
        sentences.append(
            f"In patients like those tested at {site_name(place)}, expect {title} of "
            f"{interval(row, fine=is_narrow(row))}{alone}."
        )
    for word, decided in (("better", True), ("worse", False)):
        others = [text for better, text in _decided(run, focus, rows) if better == decided]
        if others:
            sentences.append(f"On the same patients it was {word} than {', '.join(others)}.")
    return sentences + relied_on(run, place)


def _is_decided(versus: Row) -> bool:
    """Return whether a difference is more than chance: by its interval and, if it was tested, by Holm's p.

    A test by permutation and a bootstrap's interval may disagree; then nothing is decided.
    """
    if versus.p_holm is not None and versus.p_holm >= SIGNIFICANT:
        return False
    return versus.low is not None and versus.high is not None and not versus.low <= 0 <= versus.high


def _against(run: Run, focus: Focus, rows: FocusRows) -> list[Row]:
    """Return the federated model's differences to the others that were trained, at the first place."""
    models = [name for name in run.models if name.startswith("local:") or name == POOLED]
    found = (rows.valued(focus.places[0], FEDERATED, against=model) for model in models)
    return [row for row in found if row is not None]


def _decided(run: Run, focus: Focus, rows: FocusRows) -> list[tuple[bool, str]]:
    """Return each model that differs by more than chance: whether ours is better, and by how much."""
    return [
        (
            ((versus.value or 0.0) > 0) == (focus.record.better != "lower"),
            f"{_named(str(versus.against))} ({focus.record.title} {interval(versus, sign=True)})",
        )
        for versus in _against(run, focus, rows)
        if _is_decided(versus)
    ]


def _named(model: str) -> str:
    """Return a model in words of a ward: whose it is, not how it was trained."""
    kind, _, site = model.partition(":")
    if kind == "local" and site:
        return f"{site}'s own model"
    return "a model of all data in one place" if model == POOLED else model_name(model)


def _may_not(run: Run, focus: Focus, rows: FocusRows) -> list[str]:
    """Return what does not follow, however good the numbers look."""
    sentences = []
    row = rows.valued(focus.places[0], FEDERATED)
    if focus.metric in PAIRS and row is not None and row.low is not None and row.low <= CHANCE:
        sentences.append(
            f"That it tells patients apart at all: the interval is not above {CHANCE:.2f}, a coin's toss."
        )
    if row is not None and is_small_sample(row):
        sentences.append(
            f"That the interval is wide enough: from {row.n} patients it is likely too narrow ({DAGGER})."
        )
    undecided = [
        _named(str(versus.against)) for versus in _against(run, focus, rows) if not _is_decided(versus)
    ]
    if undecided:
        sentences.append(
            f"That it is better or worse than {', '.join(undecided)}: the difference may be chance."
        )
    if not any(map(run.took_no_part, run.tested_only)):
        sentences.append("That it works at a hospital that took no part: none was tested.")
    else:
        sentences.append("That it works at yet another hospital, with other scanners or other patients.")
    if focus.split != "test":
        sentences.append("That it does as well in new patients: these were seen while it was chosen.")
    if relied_on(run, focus.places[0]):
        sentences.append("That false alarms are rare at these thresholds: of them nothing is guaranteed.")
        if caveat(run):
            sentences.append(
                "That these thresholds hold quite as often as stated: the same patients chose the model."
            )
    sentences.append("That using it helps or is safe: no decision was made with it. It is no medical device.")
    return sentences
