"""The clinician's page: what was asked, on whom, the answer, and what follows from it and what does not.

It is printed on one side of A4, before everything else. Each sentence follows from the run's own rows.
"""

from __future__ import annotations

from typing import Any

from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report.focus import Focus, FocusRows
from medfed.evaluation.report.formatting import interval, is_narrow, model_name, number, site_name
from medfed.evaluation.report.glossary import definition
from medfed.evaluation.report.guarantees import caveat, relied_on
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import FEDERATED, POOLED, Row

# The metrics below the answer, in words that a ward uses, if the run has them.
COUNTS = (
    ("missed", "patients in whom it was missed altogether"),
    ("lesion_sensitivity", "share of a patient's lesions found"),
    ("rightly_empty", "patients without it rightly left empty"),
    ("false_positives", "false positive lesions a case"),
    ("sensitivity", "sensitivity, of those who have it"),
    ("specificity", "specificity, of those who have it not"),
    ("events", "events"),
)
# Differences with a smaller p value, corrected over the models (Holm), count as more than chance.
SIGNIFICANT = 0.05
# A hospital or two fit on the page; the others have their columns below.
MAX_PLACES = 3
# So many structures or classes have lines of their own on the page.
MAX_STRUCTURES = 4
# The headline metrics in plain words, of a value out of 100 pairs; 50 of them are right by chance alone.
PAIRS = {
    "auroc": "Of two patients, one with {what} and one without, it ranks the right one higher in about {of} "
    "of 100 such pairs; a coin's toss is right in 50.",
    "c_index": "Of two patients it names the one with the earlier event in about {of} of 100 such pairs; a "
    "coin's toss is right in 50.",
}
CHANCE = 0.5
ASKED = {
    "segment": "Can one model outline “{what}” at each of these hospitals, if no image leaves its hospital?",
    "survival": "Can one model rank patients by risk at each of these hospitals, if no data leave them?",
}


def summary(run: Run, focus: Focus | None) -> dict[str, Any] | None:
    """Return the page's parts for the template, or None without a result."""
    if focus is None or not focus.places:
        return None
    rows, places = focus.rows(run.rows), focus.places[:MAX_PLACES]
    return {
        "asked": _asked(run, focus),
        "whom": _whom(run, focus, places),
        "places": places,
        "answer": [_answer(rows.valued(place, FEDERATED)) for place in places],
        "counts": _by_structure(run, focus, places) + _counts(run, focus, places),
        "meaning": _meaning(run, focus, rows.valued(places[0], FEDERATED)),
        "may": _may(run, focus, rows),
        "may_not": _may_not(run, focus, rows),
    }


def _structures(run: Run, focus: Focus) -> list[str]:
    return sorted({row.structure for row in run.rows if row.metric == focus.metric and row.structure})


def _what(run: Run, focus: Focus) -> str:
    """Return what is looked for: structures, or the class that patients have or not."""
    return ", ".join(_structures(run, focus)) or (run.facts.classes[-1] if run.facts.classes else "it")


def _meaning(run: Run, focus: Focus, row: Row | None) -> str:
    """Return what the headline's value says, in words of a ward; '' where the metric has none."""
    if row is None or row.value is None or focus.metric not in PAIRS:
        description = definition(focus.record.title)
        return f"{focus.record.title}: {description}." if description else ""
    what = _what(run, focus) if len(run.facts.classes) == 2 else "a class"
    return PAIRS[focus.metric].format(what=what, of=round(100 * row.value))


def _by_structure(run: Run, focus: Focus, places: list[str]) -> list[tuple[str, list[str]]]:
    """Return each structure's value and misses, where the headline is a mean over several."""
    lines = []
    for structure in _structures(run, focus)[:MAX_STRUCTURES] if focus.structure is None else ():
        rows = focus._replace(structure=structure).rows(run.rows)
        missed = focus._replace(metric="missed", structure=structure).rows(run.rows)
        values = [rows.valued(place, FEDERATED) for place in places]
        lines.append((f"{structure}: {focus.record.title}", [_answer(row) for row in values]))
        counts = [
            _count(missed.valued(place, FEDERATED), of) for place, of in zip(places, values, strict=True)
        ]
        if any(text != "–" for text in counts):
            lines.append((f"{structure}: patients in whom it was missed altogether", counts))
    return lines


def _asked(run: Run, focus: Focus) -> str:
    what = _what(run, focus)
    call = "Can one model tell who has {what} at each of these hospitals, if no data leave them?"
    return ASKED.get(run.facts.task, call).format(what=what)


def _whom(run: Run, focus: Focus, places: list[str]) -> list[str]:
    """Return where the model was trained, and on how many patients it was tested at which place."""
    patients = focus._replace(metric="patients", structure=None).rows(run.rows)
    trained = ", ".join(run.trained) or "no hospital"
    lines = [f"Trained at {trained}."]
    for place in places:
        row = patients.valued(place, FEDERATED) or focus.rows(run.rows).valued(place, FEDERATED)
        if row is not None:
            apart = ", which took no part in training" if place in run.facts.held_out else ""
            other = "" if apart or focus.split != "test" else " who did not train it"
            lines.append(f"Tested at {site_name(place)}{apart}: {row.n} patients{other}.")
    return lines


def _answer(row: Row | None) -> str:
    if row is None:
        return "–"
    fine = is_narrow(row)
    spread = f" ({interval(row, fine=fine)})" if row.low is not None else ""
    return f"{number(row.value, metric_of(row.metric), fine=fine)}{spread} in {row.n}"


def _counts(run: Run, focus: Focus, places: list[str]) -> list[tuple[str, list[str]]]:
    """Return what a patient feels of the model: missed, found, invented, for each place."""
    lines, answers = [], focus.rows(run.rows)
    for name, words in COUNTS:
        rows = focus._replace(metric=name, structure=focus.structure).rows(run.rows)
        # An overlap is of the patients who have the structure: only in them can it be missed.
        having = [answers.valued(place, FEDERATED) if name == "missed" else None for place in places]
        cells = [_count(rows.valued(place, FEDERATED), of) for place, of in zip(places, having, strict=True)]
        if any(cell != "–" for cell in cells):
            lines.append((words, cells))
    return lines


def _count(row: Row | None, of: Row | None = None) -> str:
    if row is None:
        return "–"
    if row.metric in ("sensitivity", "specificity"):
        return _answer(row).rpartition(" in ")[0]  # it is of those with or without, not of all patients
    patients = (of or row).n
    return f"{row.value:.0f} of {patients}" if metric_of(row.metric).count else _answer(row)


def _may(run: Run, focus: Focus, rows: FocusRows) -> list[str]:
    """Return what follows for patients like those tested."""
    place = focus.places[0]
    row = rows.valued(place, FEDERATED)
    sentences = []
    if row is not None and row.low is not None:
        title, alone = focus.record.title, ""
        if run.facts.task == "segment":
            title, alone = f"a mean {title}", "; single patients differ more"
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
    """Return whether a difference is more than chance: by Holm's p if it was tested, else by its interval."""
    if versus.p_holm is not None:
        return versus.p_holm < SIGNIFICANT
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
    undecided = [
        _named(str(versus.against)) for versus in _against(run, focus, rows) if not _is_decided(versus)
    ]
    if undecided:
        sentences.append(
            f"That it is better or worse than {', '.join(undecided)}: the difference may be chance."
        )
    if not run.tested_only:
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
