"""A study's own cases and batches (`data: {kind: ...}`): one file per kind, named after it.

To add one, write `data/datamodules/<name>.py` with a `DataModule` record tagged `<name>`, or put it
into a plug-in; `medfed.testing.check_datamodule` is its contract. It lists a hospital's cases and gives the
tensors of one; tokens, splits by patient, batches, screening and what may be told of a case stay medfed's.
"""

from medfed.data.case import Case
from medfed.data.datamodules._datamodule import DataModule
from medfed.data.layouts._layout import ListedCase

__all__ = ["Case", "DataModule", "ListedCase"]
