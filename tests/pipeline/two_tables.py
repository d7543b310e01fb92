"""Two hospitals with a column each of one number, and logistic regression on them in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medfed.pipeline.factory import hospital_of, module_of
from medfed.pipeline.federate import StudyRun
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog

# Each hospital's training cases: the number and the class.
CASES = {"north": [(-1.0, 0), (0.5, 1)], "south": [(2.0, 1), (1.0, 0), (-2.0, 0), (0.0, 1)]}
RATE, ROUNDS, EPOCHS = 0.5, 2, 3

STUDY = f"""\
name: two-tables
seed: 3
task: {{kind: tabular, classes: [healthy, ill], loss: {{kind: binary_cross_entropy}}}}
network: {{kind: fully_connected, hidden: []}}
data: {{kind: table, features: [x], target: ill, standardise: none}}
train: {{rounds: {ROUNDS}, epochs: {EPOCHS}, batch: 10, optimiser: {{kind: sgd, lr: {RATE}}}}}
sampling: {{minimum: 1}}
evaluation: {{draws: 20, smallest_group: 1, local_models: false, pooled_model: false, robustness: false}}
sites: {{north: north.csv, south: south.csv}}
"""


def write_tables(folder: Path) -> Path:
    """Write the hospitals' tables, each with a patient to validate and one to test on, and their study."""
    for site, cases in CASES.items():
        lines = [f"{site}{n},{x},{y},train" for n, (x, y) in enumerate(cases)]
        others = [f"{site}v,1,1,val", f"{site}w,-1,0,val", f"{site}t,1,1,test", f"{site}u,-1,0,test"]
        (folder / f"{site}.csv").write_text("\n".join(["patient,x,ill,split", *lines, *others]) + "\n")
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def opened(folder: Path, overrides: Sequence[str] = ()) -> StudyRun:
    """Return a run of the study in `folder / "run"`, before anything trains."""
    study = read_study(write_tables(folder), overrides)
    hospitals = {site: hospital_of(study, site, str(where)) for site, where in study.sites.items()}
    run_folder = RunFolder(folder / "run")
    run_folder.path.mkdir()
    return StudyRun(study, run_folder, hospitals, Progress(), AuditLog(None), resume=False)


def initial(study: Study) -> tuple[float, float]:
    """Return weight and bias of the untrained model."""
    weight, bias = module_of(study).parameters()
    return float(weight.detach()), float(bias.detach())


def descent(line: tuple[float, float], cases: Sequence[tuple[float, int]], steps: int) -> tuple[float, float]:
    """Return weight and bias after gradient steps on the mean log loss of all cases."""
    x, y = np.array(cases).T
    weight, bias = line
    for _ in range(steps):
        error = 1 / (1 + np.exp(-(weight * x + bias))) - y
        weight, bias = weight - RATE * (error * x).mean(), bias - RATE * error.mean()
    return float(weight), float(bias)
