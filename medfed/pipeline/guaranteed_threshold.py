"""The threshold that a hospital may rely on (`evaluation.guarantee`), applied to what a model predicts.

In the folder that holds the hospital's validation patients it is the hospital's own, in hundredths, which
is nearly one patient's score and stays there. Elsewhere it is that of the run's rows, which is no higher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfed.errors import RunError, StudyError
from medfed.evaluation.guarantees import (
    COVERED,
    FOUND,
    PREFIX,
    SENSITIVITY,
    SET,
    VOXELS,
    Aim,
    Level,
    own_guarantee,
)
from medfed.evaluation.report.guarantees import caveat, title
from medfed.evaluation.report.run import read_run
from medfed.evaluation.rows import EVERY_SITE, FEDERATED, read_cases, read_rows
from medfed.evaluation.summarise import read_public_study, read_run_facts, summary_settings
from medfed.runs.folder import RunFolder
from medfed.study.study import Study
from medfed.wire.untrusted_text import for_log

# What a study's task may guarantee, by what the task predicts.
OF_MASKS, OF_CLASSES = (FOUND, COVERED, VOXELS), (SENSITIVITY, SET)
KINDS = (*OF_MASKS, *OF_CLASSES)
# The file beside the predictions that says what was guaranteed.
SAID = "guarantee.txt"


class Decision(NamedTuple):
    """A threshold that keeps a guarantee: of what, of which class by its number, and in words."""

    kind: str
    number: int
    name: str
    threshold: float
    sentence: str
    caveat: str = ""

    def mask(self, probabilities: NDArray[np.floating]) -> NDArray[np.integer]:
        """Return the labels (X, Y, Z) of the one structure, from probabilities (classes, X, Y, Z)."""
        reached = probabilities[self.number].astype(np.float64) >= self.threshold
        return np.where(reached, self.number, 0)

    def columns(self, line: dict[str, object]) -> dict[str, object]:
        """Return a case's line with the threshold, and what of its probabilities is called at it.

        The line of a case that was not predicted stays as it is.
        """
        shares = {
            name.removeprefix("probability of "): value
            for name, value in line.items()
            if name.startswith("probability of ") and isinstance(value, float)
        }
        if self.kind in OF_MASKS or not shares:
            return {**line, "threshold": self.threshold} if shares or "file" in line else line
        reached = [name for name, value in shares.items() if value >= self.threshold]
        if self.kind == SET:
            called: dict[str, object] = {"set of classes": "; ".join(reached)}
        else:
            called = {f"called {self.name}": "yes" if self.name in reached else "no"}
        return {**line, "threshold": self.threshold, **called}


def decision_of(study: Study, folder: RunFolder, site: str, wanted: str) -> Decision:
    """Return a hospital's threshold for `wanted`, such as "found", or "found:liver" of several structures.

    Args:
        study: the run's study.
        folder: the run's folder.
        site: a hospital of the study, or "each hospital" for the least of their thresholds.
        wanted: what is guaranteed, and of which structure or class.

    Raises:
        StudyError: if the study guarantees nothing, or nothing of this kind.
        RunError: if the hospital has no threshold; it says which have.
    """
    kind, _, structure = wanted.partition(":")
    evaluation, task = study.evaluation, study.task
    if evaluation.guarantee is None:
        raise StudyError(
            f"study '{study.name}': evaluation.guarantee is not set, so no threshold was chosen; "
            "train with it, such as 0.9"
        )
    possible = {"segment": OF_MASKS, "classes": OF_CLASSES}.get(_predicts(task), ())
    if kind not in possible:
        raise StudyError(
            f"study '{study.name}': its task has no guarantee '{for_log(kind, 40)}'; there are "
            f"{', '.join(possible) or 'none'}"
        )
    number, of = _class_of(task, kind, structure)
    threshold, source = _threshold(
        folder, site, (kind, of), Level(evaluation.guarantee, evaluation.confidence)
    )
    run = read_run(folder.path)
    said, why = title(run, kind, of), caveat(run)
    sentence = f"{said}, at {site} at a threshold of {threshold:.2f} ({source})"
    return Decision(kind, number, task.classes[number], threshold, sentence, why)  # type: ignore[attr-defined]


def write_said(decision: Decision, whose: str, out: Path) -> None:
    """Write beside the predictions what was guaranteed, and in `whose` whose patients these are."""
    more = (
        "" if decision.kind in OF_MASKS else "Of several images of a patient the mean probability counts.\n"
    )
    more += f"{decision.caveat}\n" if decision.caveat else ""
    (out / SAID).write_text(
        f"{decision.sentence}.\nIt holds for patients like those that the threshold was chosen on: the "
        "next ones of this hospital. Lower thresholds cost false positives, of which nothing is "
        f"guaranteed.\n{whose}\n{more}",
        encoding="utf-8",
    )


def _predicts(task: Any) -> str:
    if task.predicts == "segment":
        return "segment"
    return "classes" if getattr(task, "classes", ()) and task.predicts not in ("survival", "other") else ""


def _class_of(task: Any, kind: str, structure: str) -> tuple[int, str | None]:
    """Return a class's number and the structure of its rows, which is None if only one can be meant."""
    names = list(task.classes)
    if kind == SET:
        if structure:
            raise StudyError("a set is of all classes; leave the class after 'set:' out")
        return 0, None
    background = 1 if task.predicts == "segment" else 0
    two = task.predicts != "segment" and task.needs != "multilabel" and len(names) == 2
    meant = names[1:] if two else names[background:]
    if not structure and len(meant) == 1:
        structure = meant[0]
    if structure not in meant:
        raise StudyError(
            f"a guarantee is of one structure or class: write {kind}: and one of {', '.join(meant)} behind it"
        )
    return names.index(structure), None if two else structure


def _threshold(folder: RunFolder, site: str, aim: Aim, level: Level) -> tuple[float, str]:
    """Return a hospital's threshold, and in words where it comes from.

    Raises:
        RunError: if there is none.
    """
    cases = read_cases(folder.cases) if folder.cases.is_file() else []
    scores = read_cases(folder.scores) if folder.scores.is_file() else []
    own = [case for case in (*cases, *scores) if case.site == site and case.split == "val"]
    if own and site != EVERY_SITE:
        settings = summary_settings(read_run_facts(folder.path), read_public_study(folder.path), 0)
        one = own_guarantee(own, (), settings, level, aim)
        if one.threshold is None:
            raise RunError(f"{site}: {one.why_not}")
        return one.threshold, f"its own, of {one.patients} validation patients; it stays at this hospital"
    rows = [
        row
        for row in (read_rows(folder.rows) if folder.rows.is_file() else [])
        if (row.metric, row.structure, row.model) == (f"{PREFIX}{aim[0]}", aim[1], FEDERATED)
    ]
    row = next((row for row in rows if row.site == site), None)
    if row is not None and row.value is not None:
        return row.value, "from the run's rows"
    there = ", ".join(sorted(one.site for one in rows if one.value is not None)) or "none"
    why = f": {row.note}" if row is not None else ""
    raise RunError(
        f"no guaranteed threshold of '{for_log(site, 40)}' in this run{why}; name a hospital of the study "
        f"with --name: {there}"
    )
