"""What participants.tsv and dseg.tsv say: subjects, classes and the names of a label's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.layouts._bids_tables import Participants, read_label_tables, read_participants
from medfed.data.layouts._survey import Survey
from medfed.errors import DataError

from ..hospital_folder import MARK


def participants(folder: Path, *lines: str, needed: bool = False) -> Participants:
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return read_participants(Survey.of(folder), needed=needed)


def test_cells_without_a_value_are_left_out_and_subjects_lose_their_prefix(tmp_path: Path) -> None:
    table = participants(tmp_path, "participant_id\tSex\tAge", "sub-1\tF\tn/a", "2\t\t40")
    assert table.rows == {"1": {"sex": "F"}, "2": {"age": "40"}}
    assert table.columns == ("sex", "age")
    assert (table.notes, table.read) == ((), (tmp_path / "participants.tsv",))


def test_a_table_that_is_not_needed_is_noted_without_a_cell(tmp_path: Path) -> None:
    assert read_participants(Survey.of(tmp_path), needed=False) == Participants()
    with pytest.raises(DataError, match=r"`target` is a column of participants\.tsv, which is not there"):
        read_participants(Survey.of(tmp_path), needed=True)
    lines = ("subject\tsex", f"{MARK}\tF")
    table = participants(tmp_path, *lines)
    (note,) = table.notes
    assert "participants.tsv has no column 'participant_id'" in note
    assert MARK not in note
    assert (table.rows, table.read) == ({}, (tmp_path / "participants.tsv",))
    with pytest.raises(DataError, match="has no column 'participant_id'; add it, or remove the file"):
        participants(tmp_path, *lines, needed=True)


def of_column(*cells: str) -> Participants:
    return Participants({str(n): {"group": cell} for n, cell in enumerate(cells)}, ("group",))


def test_classes_are_numbered_by_the_table_or_in_the_order_of_their_words() -> None:
    assert of_column("b", "a", "b", "a").targets("Group") == ({"0": 1, "1": 0, "2": 1, "3": 0}, ("a", "b"))
    assert of_column("2", "0", "2", "0").targets("group") == ({"0": 2, "1": 0, "2": 2, "3": 0}, ())
    # A digit of another script is a word, not a number.
    assert of_column("²", "1", "²", "1").targets("group") == ({"0": 1, "1": 0, "2": 1, "3": 0}, ("1", "²"))


@pytest.mark.parametrize("cells", [("a", "a", "a", "a"), ("a", "b", "c", "d"), ("a", "b", "c", "a", "b")])
def test_one_word_or_nearly_as_many_as_subjects_are_no_classes(cells: tuple[str, ...]) -> None:
    words = len(set(cells))
    with pytest.raises(DataError, match=f"has {words} different values for {len(cells)} subjects"):
        of_column(*cells).targets("group")


def label_table(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_label_tables_of_all_labels_lie_at_the_top_or_directly_below_a_pipeline(tmp_path: Path) -> None:
    label_table(tmp_path / "dseg.tsv", "index\tname\n2\ttumour\n")
    label_table(tmp_path / "derivatives" / "a_dseg.tsv", "name\tindex\noedema\t1\n")
    label_table(tmp_path / "derivatives" / "fast" / "dseg.tsv", "index\tname\n2\ttumour\n")
    label_table(tmp_path / "derivatives" / "fast" / "sub-1" / "dseg.tsv", "index\tname\n2\tanother\n")
    label_table(tmp_path / "elsewhere" / "dseg.tsv", "index\tname\n2\tanother\n")
    names, read = read_label_tables(Survey.of(tmp_path))
    assert list(names.items()) == [(1, "oedema"), (2, "tumour")]
    assert {path.relative_to(tmp_path).as_posix() for path in read} == {
        "dseg.tsv", "derivatives/a_dseg.tsv", "derivatives/fast/dseg.tsv",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number\tname\n1\ttumour\n", "has no columns 'index' and 'name'"),
        ("index\tname\nx\ttumour\n", "row 2 gives no number its name"),
        ("index\tname\n1\t\n", "row 2 gives no number its name"),
        ("index\tname\n1\ttumour\n1\toedema\n", "give the number 1 two names"),
    ],
)
def test_a_label_table_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    label_table(tmp_path / "dseg.tsv", text)
    with pytest.raises(DataError, match=message):
        read_label_tables(Survey.of(tmp_path))
