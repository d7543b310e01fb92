"""`medfed train STUDY --compare fedavg,fedprox,scaffold`: compare methods on one study with equal budgets.

Each method is a run with its own folder and report. The table also shows what each hospital reaches alone
(`own cases alone`) and what one model trained on all cases in one place reaches (`pooled`), which only a
simulation can train. A method's name is a rule (`fedadam`), a local method under the study's own rule or
FedAvg (`fedprox`), or both (`scaffold`). Rounds, epochs, batches, optimiser and seed are the study's for all
methods. If a method keeps layers in a hospital, that hospital's own model is measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import StudyError
from medfed.evaluation import rows
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report.formatting import model_name
from medfed.evaluation.report.method_table import Cost, MethodTable, compare_methods, page, renamed
from medfed.evaluation.rows import POOLED, CaseRow, local
from medfed.files import write_whole
from medfed.pipeline.sub_runs import finished_run, open_folder
from medfed.registry import Kind, kinds
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import read_rounds
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.study.validation import validate

# The table's name for the models that hospitals train on their own cases.
ALONE = "own cases alone"


def compare(
    study: str | Path | Study,
    methods: Sequence[str],
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[MethodTable, Path]:
    """Train a study once per method; return the table, and its folder with comparison.html, .csv and .jsonl.

    A method that the study refuses (SCAFFOLD under Adam) has a row that says why; the others run.

    Raises:
        StudyError: if a method is unknown or named twice, or none can run.
        RunError: if the folder is not empty.
    """
    progress = progress or Progress()
    if not isinstance(study, Study):
        study = read_study(study, overrides)
    planned = {name: _with_method(study, name) for name in _distinct(methods)}
    ready = {name: variant for name, variant in planned.items() if isinstance(variant, Study)}
    if not ready:
        raise StudyError(
            f"--compare: none of these can run: {'; '.join(f'{n}: {w}' for n, w in planned.items())}"
        )
    folder = open_folder(study, Path(out) if out is not None else None, resume, "compare")
    cases: list[CaseRow] = []
    costs: dict[str, Cost] = {}
    for number, (name, variant) in enumerate(planned.items(), 1):
        if not isinstance(variant, Study):
            progress.log(f"method {number} of {len(planned)}: {name} is not run: {variant}")
            costs[name] = Cost(refused=variant)
            continue
        progress.log(f"method {number} of {len(planned)}: {name}")
        # The local and pooled models do not depend on the method: the first run trains them.
        run = _run(variant, folder / name, name == next(iter(ready)), progress)
        costs[name] = _cost(run)
        cases += _renamed(rows.read_cases(run.cases), name, study)
    present = {case.model for case in cases}
    others = (ALONE, *(model_name(local(site)) for site in sorted(study.sites)), POOLED)
    costs |= {name: Cost() for name in others if name in present}
    settings = SummarySettings(
        round=study.train.rounds,
        seed=study.seed,
        classes=getattr(study.task, "classes", ()),
        held_out=sorted(study.held_out),
        min_patients=study.evaluation.smallest_group,
        draws=study.evaluation.draws,
    )
    table = compare_methods(study.name, cases, costs, settings)
    rows.write(folder / "comparison.jsonl", table.rows)
    rows.write_csv(folder / "comparison.csv", table.rows)
    write_whole(folder / "comparison.html", page(table))
    return table, folder


def _distinct(methods: Sequence[str]) -> list[str]:
    names = [name.strip() for name in methods if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        problem = f"'{twice[0]}' is named twice" if twice else "no method is named"
        raise StudyError(f"--compare: {problem}; give names such as fedavg,fedprox,fedadam")
    return names


def _with_method(study: Study, name: str) -> Study | str:
    """Return the study under a method, or why the study refuses it.

    Raises:
        StudyError: if there is no such method.
    """
    rules, locals_ = kinds("aggregation"), kinds("local_training")
    if name not in rules and name not in locals_:
        raise StudyError(f"--compare: no method '{name}'; there are {', '.join(sorted({*rules, *locals_}))}")
    plain_rule = study.rule if not study.rule.needs_groups else rules["fedavg"]()
    rule = _configured(study.rule, rules[name]) if name in rules else plain_rule
    method = _configured(study.train.local, locals_[name]) if name in locals_ else None
    train = msgspec.structs.replace(study.train, local=method)
    variant = msgspec.structs.replace(study, rule=rule, train=train)
    try:
        validate(variant, "study")
    except StudyError as error:
        return str(error)
    return variant


def _configured(own: Kind | None, record: type[Kind]) -> Any:
    """Return a method with the study's settings if the study names it, else with its defaults."""
    return own if isinstance(own, record) else record()


def _run(study: Study, path: Path, is_first: bool, progress: Progress) -> RunFolder:
    own = study.evaluation
    local_models = own.local_models and is_first
    evaluation = msgspec.structs.replace(own, local_models=local_models, pooled_model=is_first)
    return finished_run(msgspec.structs.replace(study, evaluation=evaluation), path, progress)


def _cost(run: RunFolder) -> Cost:
    lines = [line for line in read_rounds(run.rounds) if line.status == "merged"]
    sites = {line.site for line in lines}
    sent = sum(line.bytes_up for line in lines) / max(len(sites), 1)
    # Only the federation's own training: the first run also trains the local and pooled models.
    return Cost(sent, sum(line.scalars.get("train/seconds") or 0.0 for line in lines))


def _renamed(cases: Sequence[CaseRow], name: str, study: Study) -> list[CaseRow]:
    """Return a run's cases under the method's name: at each hospital those of the model it would use."""
    measured = {(case.model, case.site) for case in cases}
    names: dict[tuple[str, str], str] = {}
    for site in (*study.sites, *study.held_out):
        own = rows.personal(site)
        names[own if (own, site) in measured else rows.FEDERATED, site] = name
        names[local(site), site] = ALONE
        names[POOLED, site] = POOLED
    # A held-out hospital has no model of its own; it could have been given another hospital's.
    for site in study.held_out:
        names |= {(local(other), site): model_name(local(other)) for other in study.sites}
    # Perturbed cases measure robustness and do not compare methods.
    return renamed(rows.unperturbed(cases), names)
