"""Words in the names of files and folders: which mean a label, which an image, and what is left of a name."""

from __future__ import annotations

import pytest

from medfed.data.layouts._roles import IMAGE_WORDS, LABEL_WORDS, is_label_word, is_role, plain, shared_name


def test_separators_and_case_do_not_count() -> None:
    assert plain("Ground_Truth") == plain("ground-truth") == plain("GROUND truth.") == "groundtruth"


def test_words_for_labels_and_for_images_are_told_apart() -> None:
    assert not LABEL_WORDS & IMAGE_WORDS
    assert is_label_word("labelsTr")
    assert is_label_word("Ground_Truth")
    assert not is_label_word("liver")
    assert not is_label_word("images")
    assert is_role("T2-FLAIR")
    assert is_role("imagesTr")
    assert not is_role("labels")
    assert not is_role("north")


@pytest.mark.parametrize(
    ("name", "roles", "shared"),
    [
        ("volume-7", IMAGE_WORDS, "7"),
        ("segmentation-7", LABEL_WORDS, "7"),
        ("img0007", IMAGE_WORDS, "0007"),
        ("a_image", IMAGE_WORDS, "a"),
        ("a_seg", LABEL_WORDS, "a"),
        ("p_1_ground_truth", LABEL_WORDS, "p_1"),
        # The role of an image does not stand in a label's name, and no name is all role.
        ("a_image", LABEL_WORDS, "a_image"),
        ("seg", LABEL_WORDS, "seg"),
        ("case7", IMAGE_WORDS, "case7"),
    ],
)
def test_what_an_image_and_its_label_share(name: str, roles: frozenset[str], shared: str) -> None:
    assert shared_name(name, roles) == shared
