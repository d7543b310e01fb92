"""A site's secret is read as it is, and a short or missing one is refused without its path."""

from __future__ import annotations

import pytest

from medfed.data.splits import MIN_SECRET_BYTES
from medfed.errors import DataError
from medfed.pipeline.secret_file import read_secret


def test_a_secret_is_every_byte_of_its_file(tmp_path):
    (tmp_path / "secret").write_bytes(b"\n" * MIN_SECRET_BYTES)
    assert read_secret(tmp_path / "secret") == b"\n" * MIN_SECRET_BYTES
    assert read_secret(None) is None


def test_a_short_or_missing_secret_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * (MIN_SECRET_BYTES - 1))
    with pytest.raises(DataError, match="the site's secret has 15 bytes; at least 16 are needed"):
        read_secret(tmp_path / "secret")
    with pytest.raises(
        DataError, match="the site's secret can't be read; give the path of its file"
    ) as error:
        read_secret(tmp_path / "Meier")
    assert error.value.__cause__ is None
    assert "Meier" not in str(error.value)
