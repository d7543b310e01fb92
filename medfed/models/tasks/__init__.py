"""What is learned: one file per task, named after it.

To add a task, write `tasks/<name>.py` with a `Task` record tagged `<name>`, or register one from
another package by the entry point group `medfed.tasks`; the contract test in tests/contracts holds
every task of this folder. LightningModules are in files that start with an underscore, so that a study
can be read without importing torch.

The contract of a task
----------------------
`needs` is what a batch holds: a dictionary of `case`, a list of salted ids, and

    segment    image (B, C, X, Y, Z) float32, label (B, 1, X, Y, Z) integer class numbers
    classify   image (B, C, X, Y, Z) float32, target (B,) int64
    multilabel image (B, C, X, Y, Z) float32, target (B, K) float32: 1, 0, or NaN where not labelled
               and, with a table beside the images, tabular (B, F) float32 (classify, multilabel)
    image      image (B, C, X, Y, Z) float32, of cases with a label or without one
    table      features (B, F) float32, target (B,) int64
    survival   features (B, F) float32, target (B, 2) float32: time, and event as 1, or 0 for censored

Networks and losses declare by `serves` which of these they can be used for; a task that trains the network of
another task names that one's in `network_needs`.

`outputs` is the number of outputs of the network, `outputs_of(inputs)` the same where it depends on the
channels of the images. `module(network, training)` returns the LightningModule
that trains the network as `training` says (see `Training`): it logs `train/loss`, in validation `val/loss`
and further scores named `val/...`, and returns predictions from `predict_step`. It holds the network as
`network` and no other tensors, because its tensors are what is sent.

`scores` lists every `val/...` name that the module logs; the first besides `val/loss` is shown during
training. A name that is not listed does not leave the hospital, and the site refuses to log it. A module with
`loss(batch)` (training loss, nothing logged) can be attacked by `medfed leakage`; one with
`class_losses(batch)` can be trained under fednoro.

Evaluation calls `predict_step` with whole cases and measures what it returns, in addition to `case`:

    segment              probabilities (B, K, X, Y, Z), which `task.labels` turns into class numbers on the
                         image's own grid; `task.classes` names the classes, and `task.labelled_at(site)` are
                         the numbers of those that a hospital labelled (see `VoxelTask`)
    classify, table      probabilities (B, K) of `task.classes`
    multilabel           probabilities (B, K) of `task.classes`, each between 0 and 1 by itself
    survival             risk (B,), a logarithm

A task that predicts anything else names in `metrics` the families of metrics that measure it (subclasses of
`medfed.evaluation.metrics.PredictionMetrics`, registered by file or by the entry point group
`medfed.metrics`). A family receives each case's outputs and batch, and its metrics appear in rows, report and
comparisons like any other. Such a task needs no `classes` and may return anything from `predict_step` whose
values have one entry per case.
"""

from medfed.models._needs import Needs
from medfed.models.tasks._task import Task, VoxelTask
from medfed.models.tasks._training import Training

__all__ = ["Needs", "Task", "Training", "VoxelTask"]
