"""Numbers over few patients, and those from which they would follow."""

from __future__ import annotations

import itertools

import pytest

from medfed.data.describe.suppress import bins_of, countable, with_small_withheld


@pytest.mark.parametrize(
    "groups, expected",
    [
        ([30, 12], [30, 12, 0]),
        ([30, 0], [30, 0, 0]),
        # 3 is small; with the total, 30 - 27 would give it, so the next smallest goes as well.
        ([27, 3], [0, 0, 30]),
        ([40, 12, 3], [40, 0, 0, 15]),
        ([40, 3, 4, 5], [40, 0, 0, 0, 12]),
        ([3], [0, 3]),
    ],
)
def test_a_small_group_is_withheld_with_the_next_so_that_no_total_gives_it(groups, expected):
    assert with_small_withheld(groups, 10) == expected


def test_no_released_number_from_any_groups_is_one_of_few_patients():
    for groups in itertools.product(range(8), repeat=3):
        released = with_small_withheld(groups, 4)
        few = [count for count in released if 0 < count < 4]
        assert not few or sum(groups) < 4


def test_a_sum_is_over_so_many_patients_that_no_difference_tells_of_few():
    everyone = {f"p{number}": True for number in range(20)}
    assert countable(everyone, 5) == frozenset(everyone)
    # Two have no value: three others are left out, so that the sum is of all but five.
    two_missing = {**everyone, "p3": False, "p7": False}
    assert countable(two_missing, 5) == frozenset(everyone) - {"p3", "p7", "p0", "p1", "p2"}
    five_missing = {name: number >= 5 for number, name in enumerate(everyone)}
    assert countable(five_missing, 5) == frozenset(name for name, known in five_missing.items() if known)
    # Too few remain, or too few there are.
    assert countable({f"p{number}": number > 0 for number in range(6)}, 5) == frozenset()
    assert countable({"p": True}, 5) == frozenset()
    assert countable({}, 0) == frozenset()


def test_bins_of_few_patients_move_towards_the_median():
    bins = bins_of({f"p{number}": min(number, 7) for number in range(10)}, 9, 3)
    assert sum(bins) == 10
    assert not [count for count in bins if 0 < count < 3]
    assert bins_of({}, 3, 2) == [0, 0, 0]
    assert bins_of({"p": 1}, 3, 2) == [0, 0, 0]
