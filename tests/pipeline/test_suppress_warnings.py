"""Lightning's advice is silent inside, and everything is as before after it, also after an error."""

from __future__ import annotations

import logging
import warnings

import pytest

from medfed.pipeline.suppress_warnings import suppress_warnings

NAMES = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")


def test_levels_are_restored_after_an_error():
    import pytorch_lightning  # noqa: F401 - its import sets the level that must be restored

    before = [logging.getLogger(name).level for name in NAMES]
    inside = []

    def fail():
        inside.extend(logging.getLogger(name).level for name in NAMES)
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), suppress_warnings():
        fail()
    assert inside == [logging.ERROR] * 3
    assert [logging.getLogger(name).level for name in NAMES] == before


def test_only_the_frameworks_warnings_are_suppressed():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with suppress_warnings():
            warnings.warn_explicit("advice", UserWarning, "a.py", 1, module="pytorch_lightning.trainer")
            warnings.warn_explicit("the loader does not have many workers today", UserWarning, "a.py", 2)
            warnings.warn_explicit("your data", UserWarning, "a.py", 3, module="medfed.data")
    assert [str(one.message) for one in shown] == ["your data"]
