"""What is learned: one file a task, named after it.

To add one, write `tasks/<name>.py` with a `Task` record tagged `<name>`; the contract test in tests/contracts
finds it. A record says what it `needs` of a batch and how many `outputs` the network must have, and makes the
LightningModule; the modules themselves stand in files that start with an underscore, so that a study can be
read without torch.

A batch is a dictionary: `case`, a list of salted ids, and by what the task needs
    segment    image (B, C, X, Y, Z) float32, label (B, 1, X, Y, Z) integer class numbers
    classify   image (B, C, X, Y, Z) float32, target (B,) int64
    table      features (B, F) float32, target (B,) int64
    survival   features (B, F) float32, target (B, 2) float32 of time and event: 1, or 0 for censored
"""

from medfed.models.tasks._task import Needs, Task

__all__ = ["Needs", "Task"]
