"""`medfed train STUDY --folds 5`: train a study once per fold, and report on every patient held out.

A fold is by patient and at every hospital at once (`data/splits.py`). Each is a run of its own, so that a
cross-validation that was interrupted goes on in the fold it was in. The folder:

    fold-1/ ...   each fold's run, complete: its model, its report, what it needs to resume
    ensemble/     the mean of the folds' models as a run: `medfed predict` and `medfed evaluate` take it.
                  It is measured at hospitals that took no part, and on patients whose given split is test
    cases.jsonl   each patient, measured by the models of the fold that tested them
    report.html   the report on these, over all folds; and the other files of a run folder

Patients who validate in a fold choose that fold's model, threshold and temperature, and are not tested in it.
Across hospitals each fold is a study of its own, with a digest of its own: `data.fold`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from medfed.data.splits import Fold
from medfed.errors import RunError, StudyError
from medfed.evaluation import rows
from medfed.evaluation.patients import SURVIVAL
from medfed.evaluation.rows import CaseRow
from medfed.files import private_files, utc_now, write_whole
from medfed.pipeline.create_run import record_command, write_study
from medfed.pipeline.describing import only_describes
from medfed.pipeline.ensemble import ensemble_run
from medfed.pipeline.experiments.repeated_training import require_no_privacy
from medfed.pipeline.report import report_run
from medfed.pipeline.sub_runs import finished_run, open_folder
from medfed.runs.facts import FoldFacts, RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.notebook import notebook_progress
from medfed.runs.progress import Progress
from medfed.runs.rounds import consecutive_rounds, encode_rounds, read_rounds
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study


@private_files()
def cross_validate(
    study: str | Path | Study,
    folds: int,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Train a study in each fold, and return the folder with the report over all held-out patients.

    Raises:
        StudyError: if the study cannot be used, is of one fold already, or protects its updates.
        DataError: if a hospital's data cannot be used, as in `train`.
        RunError: if the folder is not empty, or holds another cross-validation.
    """
    progress = progress or notebook_progress()
    if not isinstance(study, Study):
        study = read_study(study, overrides)
    parts = studies_of_folds(study, folds)
    folder = RunFolder(open_folder(study, Path(out) if out is not None else None, resume, "folds"))
    done = []
    for number, part in enumerate(parts, 1):
        progress.log(f"fold {number} of {folds}")
        done.append(finished_run(part, folder.path / f"fold-{number}", progress))
    _write_run(folder, study, done)
    progress.log("the mean of the folds' models")
    together, why = ensemble_run(study, done, folder.path / "ensemble", progress)
    folder.write_facts(_facts(folder, study, done, together, why))
    return report_run(folder.path)


def studies_of_folds(study: Study, folds: int) -> list[Study]:
    """Return the study in each of its folds.

    Raises:
        StudyError: if the study has a privacy mechanism, is of one fold already, or trains nothing; or if
            there are fewer than two folds.
    """
    named = f"study '{study.name}': --folds {folds}"
    if folds < 2:
        raise StudyError(f"{named}: at least 2 folds are needed, 5 are usual")
    if study.data.fold is not None:
        raise StudyError(f"{named}: the study is of one fold already (data.fold); leave data.fold out")
    if only_describes(study):
        raise StudyError(f"{named}: describe.only trains nothing; leave the key out")
    require_no_privacy(
        study,
        f"{named} would train each patient's data again",
        "in a simulation nothing leaves, so set privacy: {kind: none} here; across hospitals each fold is a "
        "study of its own (data.fold), and each hospital's ledger adds up what its patients spend",
    )
    try:
        return [study.in_fold(Fold(number=number, of=folds)) for number in range(1, folds + 1)]
    except ValueError as error:
        raise StudyError(f"{named}: {error}") from None


def held_out_cases(folds: Sequence[Iterable[CaseRow]], sites: Iterable[str]) -> list[CaseRow]:
    """Return the rows of each fold's test patients at the hospitals that train, each with its fold.

    A survival at a time that is not every fold's is left out: only a part of the patients has it.

    Raises:
        RunError: if a patient was tested in two folds.
    """
    trained = set(sites)
    parts = [[row for row in fold if row.split == "test" and row.site in trained] for fold in folds]
    tested = Counter(key for part in parts for key in {(row.site, row.patient) for row in part})
    if twice := sorted(site for (site, _), count in tested.items() if count > 1):
        raise RunError(
            f"{len(twice)} patients of {', '.join(sorted(set(twice)))} were tested in two folds: the "
            "hospital's data changed between them; train all folds anew"
        )
    common = set.intersection(*({row.metric for row in part} for part in parts))
    return [
        msgspec.structs.replace(row, attributes={**row.attributes, "fold": f"{number} of {len(parts)}"})
        for number, part in enumerate(parts, 1)
        for row in part
        if row.metric in common or not row.metric.startswith(SURVIVAL)
    ]


def _write_run(folder: RunFolder, study: Study, done: Sequence[RunFolder]) -> None:
    """Write what the report over all folds is made from: study, rounds and cases."""
    # Thresholds that are chosen on validation patients would be chosen here on those who are tested, too.
    evaluation = msgspec.structs.replace(study.evaluation, temperature=False, guarantee=None)
    write_study(folder, msgspec.structs.replace(study, evaluation=evaluation))
    write_whole(folder.rounds, encode_rounds(consecutive_rounds(read_rounds(run.rounds) for run in done)))
    cases = held_out_cases([rows.read_cases(run.cases) for run in done], study.sites)
    rows.write(folder.cases, cases)


def _facts(
    folder: RunFolder, study: Study, done: Sequence[RunFolder], together: list[str], why: str
) -> RunFacts:
    """Return the facts of all folds together."""
    facts = [run.read_facts() for run in done]
    tested = {site: sum(one.cases.get(site, {}).get("test", 0) for one in facts) for site in study.sites}
    return msgspec.structs.replace(
        facts[0],
        digest=study_digest(study),
        held_out=[],
        cases={site: {"test": count} for site, count in tested.items()},
        notes={site: _distinct(one.notes.get(site, []) for one in facts) for site in study.sites},
        warnings={
            site: said
            for site in study.sites
            if (said := _distinct(one.warnings.get(site, []) for one in facts))
        },
        seen={site: count for site in study.sites if (count := sum(one.seen.get(site, 0) for one in facts))},
        missing_models={name: why for one in facts for name, why in one.missing_models.items()},
        unmeasured={
            site: why for one in facts for site, why in one.unmeasured.items() if site in study.sites
        },
        command=record_command(folder),
        chosen=msgspec.UNSET,
        folds=FoldFacts(of=len(done), ensemble=why, measured=together),
        seconds=round(sum(one.seconds or 0.0 for one in facts), 1),
        finished=utc_now(),
    )


def _distinct(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(text for texts in lists for text in texts))
