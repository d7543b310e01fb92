"""The allow-list against the profile's own list."""

from __future__ import annotations

import pytest

from medfed.data.deidentify.rules import SEQUENCES


def test_no_sequence_of_the_tables_is_removed_by_the_profile() -> None:
    table = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    listed = {(tag[0] << 16) | tag[1] for tag in table.X_TAGS if len(tag) == 2}
    assert not listed & SEQUENCES
