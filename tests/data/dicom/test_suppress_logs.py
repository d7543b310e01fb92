"""Libraries that quote header values are silent meanwhile, and as they were before afterwards."""

from __future__ import annotations

import logging
import warnings

import pytest

from medfed.data.dicom.suppress_logs import suppress_dicom_logs


def quote() -> None:
    """Do what a library does with a damaged file."""
    with suppress_dicom_logs():
        logging.getLogger("pydicom").error("PatientName is Meier")
        warnings.warn("PatientName is Meier", stacklevel=1)
        raise ValueError("damaged")


def test_warnings_and_logs_are_silent_and_then_as_before(caplog: pytest.LogCaptureFixture) -> None:
    pydicom, nibabel = logging.getLogger("pydicom"), logging.getLogger("nibabel")
    nibabel.disabled = True
    try:
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            with pytest.raises(ValueError, match="damaged"):
                quote()
        assert (shown, caplog.text) == ([], "")
        assert (pydicom.disabled, nibabel.disabled) == (False, True)
    finally:
        nibabel.disabled = False
    pydicom.error("heard again")
    assert "heard again" in caplog.text
