"""The channels of a drafted study: by name where folders name them, by number where none does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medfed.errors import DataError
from medfed.pipeline._draft_channels import draft_channels


def folders(**sites: tuple[int, list[str]]):
    """Return preflights with these numbers and names of channels."""
    return {
        site: SimpleNamespace(facts={"channels": {str(n): 5}, "channel_names": names, "colours": False})
        for site, (n, names) in sites.items()
    }


def test_names_are_taken_in_the_first_hospitals_order() -> None:
    drafted = draft_channels(folders(north=(2, ["T1w", "FLAIR"]), south=(2, ["flair", "t1W"])))
    assert drafted == ("[T1w, FLAIR]", [])


def test_channels_without_names_are_counted_with_a_warning_for_each_hospital() -> None:
    text, warnings = draft_channels(folders(north=(2, []), south=(2, [])))
    assert text == "2"
    assert [warning.split(":")[0] for warning in warnings] == ["north", "south"]
    assert all("nothing in its folder names the channels of a case" in warning for warning in warnings)
    text, (warning,) = draft_channels(folders(north=(2, ["T1w", "FLAIR"]), south=(2, [])))
    assert (text, warning.split(":")[0]) == ("[T1w, FLAIR]", "south")


def test_colours_of_pictures_need_no_names() -> None:
    pictures = {"north": SimpleNamespace(facts={"channels": {"3": 5}, "channel_names": [], "colours": True})}
    assert draft_channels(pictures) == ("3", [])


def test_one_channel_of_different_names_is_a_warning_and_several_are_refused() -> None:
    assert draft_channels(folders(north=(1, ["T1"]), south=(1, []))) == ("1", [])
    text, (warning,) = draft_channels(folders(north=(1, ["T1"]), south=(1, ["CT"])))
    assert text == "1"
    assert warning.startswith("the hospitals call their images differently (north: T1; south: CT)")
    with pytest.raises(DataError, match=r"^the hospitals name their channels differently \(north: "):
        draft_channels(folders(north=(2, ["T1", "T2"]), south=(2, ["T1", "CT"])))


def test_different_numbers_of_channels_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"channels \(north: 1 in 5 cases; south: 2 in 5 cases\); a study needs the same"
    ):
        draft_channels(folders(north=(1, []), south=(2, [])))


def test_an_image_that_training_leaves_out_does_not_decide() -> None:
    """One 4D image among twelve refused the whole draft."""
    of = {"channels": {"1": 11, "5": 1}, "channel_names": [], "colours": False}
    text, (warning,) = draft_channels({"north": SimpleNamespace(facts=of)})
    assert text == "1"
    assert warning == (
        "north: 1 of its images have another number of channels than the others (1 in 11 cases, "
        "5 in 1 cases); training leaves them out"
    )
    of["channels"] = {"1": 10, "5": 2}  # of twelve, one may be left out
    with pytest.raises(
        DataError, match=r"different numbers of channels \(north: 1 in 10 cases, 5 in 2 cases\)"
    ):
        draft_channels({"north": SimpleNamespace(facts=of)})
