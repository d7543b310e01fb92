"""What a plan cannot be made of says so; `test_gather.py` has the values."""

from __future__ import annotations

import pytest

from medfed.data.describe.blocks import decode, encode
from medfed.data.describe.scope import Scope, blocks_of
from medfed.data.describe.sums import fingerprint_of, table_sums_of
from medfed.data.settings import Images, Table
from medfed.errors import DataError


def test_a_plan_needs_what_it_is_made_of():
    images, table = Scope(Images(), "segment", ("background", "a")), Scope(Table(features=("a",)), "table")

    def nothing(scope):
        return decode(blocks_of(scope), encode(blocks_of(scope), {}))

    with pytest.raises(DataError, match="no hospital told anything of its images"):
        fingerprint_of(images, nothing(images))
    with pytest.raises(DataError, match="no images to plan"):
        fingerprint_of(table, nothing(table))
    with pytest.raises(DataError, match="no columns to plan"):
        table_sums_of(images, nothing(images))
