"""`medfed train STUDY --search`: choose settings by the validation patients, then train and report once.

Each trial is the study's federation under other settings, on the same cases and splits. It is judged as
`train.keep: best` judges rounds: by the mean, over the hospitals, of the task's first score on validation
patients. Test patients are taken out before the first trial, so that no trial can look at them; the chosen
settings are then trained and measured as any study, in `chosen/`. The folder:

    search.json     every trial: its settings, its rounds, its scores, and why it was stopped
    trials/         each trial's rounds and merges; its models are deleted
    chosen/         the run of the chosen settings, complete, with the search in its report

An interrupted search goes on with the trial that it was in, from that trial's beginning.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import fsum
from pathlib import Path
from typing import Literal

import msgspec

from medfed.data.splits import ASIDE
from medfed.errors import DECODING_ERRORS, MedfedError, RunError, StudyError
from medfed.evaluation.inference import SiteCases
from medfed.federation.model_selection import ModelSelection
from medfed.files import private_files, write_whole
from medfed.pipeline.describing import only_describes
from medfed.pipeline.experiments.repeated_training import require_no_privacy, run_again
from medfed.pipeline.factory import judged_by
from medfed.pipeline.federate import StudyRun, federate
from medfed.pipeline.planning import needs_plan
from medfed.pipeline.report import report_run
from medfed.pipeline.search_sampling import Proposal, Stopped, propose, require_optuna
from medfed.pipeline.sub_runs import finished_run, open_folder
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.pipeline.train import open_hospitals
from medfed.runs.facts import SearchFacts, TrialFacts
from medfed.runs.folder import RunFolder
from medfed.runs.notebook import notebook_progress
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundReport
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.search import Range, Search
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog

RECORD = "search.json"

# After so many proposals in a row that were tried before, the space is taken to be exhausted.
MOST_REPEATS = 20
# After so many failures without a trial that came to a score, the first one's reason ends the search.
MOST_FAILURES = 5


@private_files()
def search(
    study: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Search a study file's `search.space` within its budget; return the run of the chosen settings.

    Raises:
        StudyError: if the study has no search or cannot be searched, or no trial came to a score.
        RunError: if the folder is not empty, or holds another search.
        DataError: if a hospital's data cannot be used, as in `train`.
    """
    progress, given = progress or notebook_progress(), read_study(study, overrides)
    settings, selection = searchable(given)
    folder = open_folder(given, Path(out) if out is not None else None, resume, "search")
    record = _read_record(folder / RECORD, given, settings, selection)
    if record.chosen is None:
        source = _Source(Path(study), tuple(overrides), given, settings, selection)
        record = _run_trials(source, folder, record, progress)
    best = record.trials[record.chosen or 0]
    progress.log(record.sentences[0])
    done = finished_run(read_study(study, [*overrides, *best.overrides]), folder / "chosen", progress)
    done.write_facts(msgspec.structs.replace(done.read_facts(), search=record))
    return report_run(done.path)


def searchable(study: Study) -> tuple[Search, ModelSelection]:
    """Return a study's search, and how its trials are judged.

    Raises:
        StudyError: if it has none or cannot be searched, or the package optuna is not installed.
    """
    named = f"study '{study.name}': --search"
    if study.search is None:
        raise StudyError(
            f"{named}: the study declares no search; add search: {{space: {{train.optimiser.lr: {{low: "
            "0.0001, high: 0.01, log: true}}, rounds: 200}"
        )
    if only_describes(study):
        raise StudyError(f"{named}: describe.only trains nothing; leave the key out")
    if needs_plan(study):
        raise StudyError(
            f"{named}: the data settings are planned from the hospitals' data (data.plan), and a search "
            "keeps them as they are; give them in the study: a run folder's plan.yaml or study.yaml has them"
        )
    require_no_privacy(
        study,
        f"{named} would train on the same patients once per trial",
        "in a simulation nothing leaves, so set privacy: {kind: none} for the search, and train the chosen "
        "settings under the mechanism",
    )
    require_optuna()
    return study.search, judged_by(study, "search")


@dataclass(frozen=True)
class _Source:
    """Where the trials' studies come from: the file as the user gave it, and what is searched in it."""

    path: Path
    overrides: tuple[str, ...]
    given: Study
    search: Search
    selection: ModelSelection

    def study(self, proposal: Proposal) -> Study:
        return read_study(self.path, [*self.overrides, *proposal.overrides])


def _run_trials(source: _Source, folder: Path, record: SearchFacts, progress: Progress) -> SearchFacts:
    """Run trials until the budget is spent or nothing new is proposed, and return the record with the choice.

    Raises:
        StudyError: if no trial came to a score.
    """
    with suppress_warnings():
        run = _opened(source.given, folder, progress)
        while record.spent < record.budget and not _is_exhausted(record):
            number, began = len(record.trials), time.monotonic()
            proposal = propose(source.search, record, source.given, number)
            progress.log(
                f"trial {number + 1}: {', '.join(proposal.overrides)} "
                f"({record.spent} of {record.budget} rounds are spent)"
            )
            trial, sites = _known(record, proposal) or _run_trial(source, run, record, proposal, number)
            trial = msgspec.structs.replace(trial, seconds=round(time.monotonic() - began, 1))
            progress.log(f"trial {number + 1}: {trial.sentence}")
            record = msgspec.structs.replace(record, trials=[*record.trials, trial], sites=sites)
            write_whole(folder / RECORD, msgspec.json.encode(record), durable=True)
    best = best_trial(record)
    if best is None:
        whys = [trial.why for trial in record.trials if trial.why]
        raise StudyError(
            f"study '{source.given.name}': --search: none of {len(record.trials)} trials came to a score"
            + (f"; the first: {whys[0]}" if whys else "")
        )
    record = msgspec.structs.replace(record, chosen=best)
    write_whole(folder / RECORD, msgspec.json.encode(record), durable=True)
    return record


def best_trial(record: SearchFacts) -> int | None:
    """Return the number of the best trial that was trained to its end, the earlier of equal ones."""
    ended = [
        (trial.score, number)
        for number, trial in enumerate(record.trials)
        if trial.state == "finished" and trial.score is not None
    ]
    sign = -1 if record.better == "higher" else 1
    return min(ended, key=lambda one: (sign * one[0], one[1]))[1] if ended else None


def _is_exhausted(record: SearchFacts) -> bool:
    """Return whether the last proposals were all tried before, or all trials failed."""
    repeated = [trial.repeats is not None for trial in record.trials[-MOST_REPEATS:]]
    failed = [trial.state == "failed" for trial in record.trials if trial.repeats is None]
    return (len(repeated) == MOST_REPEATS and all(repeated)) or (len(failed) >= MOST_FAILURES and all(failed))


def _known(record: SearchFacts, proposal: Proposal) -> tuple[TrialFacts, list[str]] | None:
    """Return the former trial of the same settings, which would be trained to the same scores."""
    for number, trial in enumerate(record.trials):
        if trial.overrides == list(proposal.overrides):
            first = number if trial.repeats is None else trial.repeats
            return msgspec.structs.replace(trial, rounds=0, repeats=first), record.sites
    return None


def _opened(study: Study, folder: Path, progress: Progress) -> StudyRun:
    """Return a run whose hospitals have no test case, to train the trials from."""
    alone = msgspec.structs.replace(study, held_out={})
    hospitals, unusable = open_hospitals(alone, progress)
    blind = {site: without_test(hospital) for site, hospital in hospitals.items()}
    return StudyRun(alone, RunFolder(folder), blind, progress, AuditLog(None), False, unusable)


def without_test(hospital: SiteCases) -> SiteCases:
    """Return a hospital whose test cases are set aside, so that nothing that trains or scores has them."""
    data = copy.copy(hospital.data)
    data.index = replace(
        data.index,
        cases=tuple(
            replace(case, split=ASIDE) if case.split == "test" else case for case in data.index.cases
        ),
    )
    return replace(hospital, data=data)


def _run_trial(
    source: _Source, run: StudyRun, record: SearchFacts, proposal: Proposal, number: int
) -> tuple[TrialFacts, list[str]]:
    """Return what became of a trial, and the sites whose scores judge."""
    folder = RunFolder(run.folder.path / "trials" / f"{number + 1:03}")
    shutil.rmtree(folder.path, ignore_errors=True)  # of a trial that was interrupted
    watch = _Watch(source.selection, proposal, list(record.sites), record.budget - record.spent)
    state: Literal["finished", "stopped", "failed"] = "finished"
    why = ""
    try:
        study = msgspec.structs.replace(source.study(proposal), held_out={})
        federate(run_again(run, study, folder), watch.round)
    except Stopped as stop:
        state, why = "stopped", str(stop)
    except MedfedError as error:
        state, why = "failed", str(error)
    score = watch.final(source.selection) if state == "finished" else watch.newest
    if state == "finished" and score is None:
        state = "failed"
        why = (
            f"not every hospital sent '{source.selection.score}' of the final model; one sends none over "
            f"fewer than {run.study.evaluation.smallest_group} patients (evaluation.smallest_group)"
        )
    for path in (folder.hub, folder.path / "sites", folder.checkpoints):
        shutil.rmtree(path, ignore_errors=True)
    return (
        TrialFacts(
            overrides=list(proposal.overrides),
            values=dict(proposal.values),
            state=state,
            why=why,
            rounds=watch.rounds,
            scores=watch.scores,
            score=score,
            rungs=proposal.rungs(),
        ),
        watch.sites,
    )


@dataclass
class _Watch:
    """What is seen of a trial's rounds; it raises `Stopped` once the trial is worth no more of the budget."""

    selection: ModelSelection
    proposal: Proposal
    sites: list[str]
    budget: int
    rounds: int = 0
    merged: int = 0
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def newest(self) -> float | None:
        """The score of the last model that was judged."""
        return self.scores[max(self.scores)] if self.scores else None

    def round(self, report: RoundReport) -> None:
        """Take in a round's report, whose scores are those of the model before it."""
        only_scores = report.scored is not None
        self.rounds = self.rounds if only_scores else report.round
        step = report.scored if report.scored is not None else report.round - 1
        scores = self.selection.scores_in(report.results)
        self.sites = self.sites or sorted(scores)
        # The final model may be another one than that of its round: the best, or the mean of several.
        is_new = step not in self.scores or report.final
        if step >= 1 and is_new and self.sites and set(self.sites) <= scores.keys():
            self.scores[step] = fsum(scores[site] for site in self.sites) / len(self.sites)
            if not report.final:
                self.proposal.report(self.scores[step], step)
        if report.final:
            self.merged = step
        elif not only_scores:
            self.proposal.check(step)
            if self.rounds >= self.budget and self.rounds < self.proposal.rounds:
                raise Stopped(f"the budget was spent after round {self.rounds}")

    def final(self, selection: ModelSelection) -> float | None:
        """Return the score of the model that the trial ended with, None if it was not judged."""
        if selection.keep == "best" and self.scores:
            return (max if selection.better == "higher" else min)(self.scores.values())
        return self.scores.get(self.merged)


def _read_record(path: Path, study: Study, search: Search, selection: ModelSelection) -> SearchFacts:
    """Return what a folder's search has found so far.

    Raises:
        RunError: if it is another search's, or the file is damaged.
    """
    new = SearchFacts(
        digest=study_digest(study),
        score=selection.score,
        better=selection.better,
        space={key: shown_space(values) for key, values in search.space.items()},
        budget=search.rounds,
        least=search.first_rung(study.train.rounds),
        reduction=search.reduction,
    )
    if not path.exists():
        return new
    try:
        old = msgspec.json.decode(path.read_bytes(), type=SearchFacts)
    except DECODING_ERRORS as error:
        raise RunError(
            f"{path.name}: is damaged: {error}; restore it, or search anew with another --out"
        ) from None
    if msgspec.structs.replace(old, trials=[], sites=[], chosen=None) != new:
        raise RunError(
            f"{path.name}: holds a search of other settings, or of another study; resume with the file and "
            "the --set that started it, or give another --out"
        )
    return old


def shown_space(values: Range | Sequence[object]) -> str:
    """Return what a key is searched in, as a reader sees it."""
    if isinstance(values, Range):
        return f"{values.low:g} to {values.high:g}{', evenly in its logarithm' if values.log else ''}"
    return ", ".join(msgspec.json.encode(one).decode() for one in values)
