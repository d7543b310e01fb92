"""Keep Lightning's advice and warnings out of a run's display."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress advice and warnings of Lightning, MONAI and torch; medfed reports what a person can act on."""
    import pytorch_lightning as pl  # its import sets the levels that are changed here

    loggers = [logging.getLogger(name) for name in (pl.__name__, "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|monai|torch")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
