"""Suppression of warnings and logs of libraries that quote header values in them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_dicom_logs() -> Iterator[None]:
    """Suppress the logs and warnings of pydicom, nibabel and the decoders."""
    loggers = [
        logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg", "highdicom", "nibabel")
    ]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled
