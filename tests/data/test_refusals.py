"""Each refusal has its fixed words, the more special before the more general."""

from __future__ import annotations

import pytest

from medfed.data import refusals
from medfed.data.refusals import REASONS, of_case, reason_of
from medfed.errors import DataError, ImageError, LabelError


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_a_type_is_counted_by_its_own_words(kind):
    """A general type that stood before a special one would count the special one as its own."""
    assert reason_of(kind("why")) == REASONS[kind]


def test_types_without_words_of_their_own_are_counted_by_what_they_are():
    assert reason_of(LabelError("why")) == "label unreadable"
    assert reason_of(ImageError("why")) == reason_of(DataError("why")) == "image unreadable"


def test_every_type_of_this_module_has_words():
    own = {
        one
        for one in vars(refusals).values()
        if isinstance(one, type) and one.__module__ == refusals.__name__
    }
    assert refusals.OtherPatientError in own
    assert own <= set(REASONS)


def test_reasons_are_distinct_and_plain():
    assert len(set(REASONS.values())) == len(REASONS)
    assert all(words.replace(" ", "").isalpha() for words in REASONS.values())


def test_a_refusal_that_names_its_case_keeps_its_type():
    error = of_case(refusals.LabelGridError("another grid"), "4f2a")
    assert type(error) is refusals.LabelGridError
    assert str(error) == "case 4f2a: another grid"
