"""Table 1's lines; `test_gather.py` compares their numbers with numpy."""

from __future__ import annotations

import pytest

from medfed.data.describe.blocks import decode, encode
from medfed.data.describe.scope import Scope, blocks_of
from medfed.data.describe.table_one import require_described, table_one
from medfed.data.settings import Table
from medfed.errors import DataError

SCOPE = Scope(Table(features=("crp",), target="ill"), "table", ("no", "yes"))


def whole(sites=1, **values):
    named = {name.replace("_", "."): numbers for name, numbers in values.items()}
    return decode(blocks_of(SCOPE), encode(blocks_of(SCOPE), {"hospitals": [sites, sites], **named}), sites)


def test_a_line_says_of_each_hospital_and_of_all_what_was_counted():
    # Two patients of 40 and 50 years: mean 45, sample deviation 7.07.
    north = whole(
        patients=[2], cases=[3], age_counted=[2], age_sums=[900, 400**2 + 500**2], sex=[1, 1, 0, 0, 0]
    )
    few = whole(hospitals=[1, 0])
    lines = {(one.variable, one.level): one for one in table_one(SCOPE, north, {"north": north, "few": few})}
    assert lines["age, years", "mean (SD)"].overall == "45 (7.071)"
    assert lines["age, years", "mean (SD)"].hospitals == {"north": "45 (7.071)", "few": "-"}
    assert lines["sex", "female"].overall == "1 (50.0%)"
    # What may be absent and is so at every hospital has no line.
    assert ("sex", "other") not in lines
    assert not [level for variable, level in lines if variable == "scanner"]


def test_a_number_that_is_withheld_is_said_to_be():
    lines = {
        (one.variable, one.level): one.overall
        for one in table_one(SCOPE, whole(patients=[12], known_0=[0, 0, 12], sex=[10, 0, 0, 0, 2]), {})
    }
    assert lines["crp", "missing"] == "0, and 12 patients withheld"
    assert lines["sex", "withheld (small groups)"] == "2 (16.7%)"
    assert (lines["sex", "female"], lines["sex", "male"]) == ("10 (83.3%)", "0 or withheld")
    assert lines["crp", "mean (SD)"] == "-"


def test_a_sum_of_which_a_hospital_withheld_a_part_is_the_least_that_it_can_be():
    # East has 4 women and 6 men; north says nothing of its 9 men and one woman.
    east, north = whole(patients=[10], sex=[4, 6, 0, 0, 0]), whole(patients=[10], sex=[0, 0, 0, 0, 10])
    both = whole(sites=2, patients=[20], sex=[4, 6, 0, 0, 10])
    lines = {
        one.level: one
        for one in table_one(SCOPE, both, {"east": east, "north": north})
        if one.variable == "sex"
    }
    assert lines["female"].overall == "at least 4 (20.0%)"
    assert lines["male"].hospitals == {"east": "6 (60.0%)", "north": "0 or withheld"}
    assert "other" not in lines
    # Under noise what is too small is withheld of the sum.
    noised = {
        one.level: one.overall for one in table_one(SCOPE, both, {}, noised=True) if one.variable == "sex"
    }
    assert noised["female"] == "4 (20.0%)"


def test_without_a_described_hospital_there_is_no_table():
    with pytest.raises(DataError, match="none of 1 hospitals has as many training patients"):
        require_described(whole(hospitals=[1, 0]))
