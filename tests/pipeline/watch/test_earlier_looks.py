"""What earlier looks showed, and of whom: no two give a patient's value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline.watch.watched import TABLE, run_of, table

from medfed.errors import RunError, TooFewPatientsError
from medfed.evaluation.rows import read_rows
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.watch.earlier_looks import EarlierLooks, read_earlier, write_earlier
from medfed.pipeline.watch.labelled import measure_look
from medfed.pipeline.watch.state import WatchFolder
from medfed.pipeline.watch.watch import Asked, watch
from medfed.study.reading import read_run_study


def test_digests_are_kept_and_no_names(tmp_path: Path) -> None:
    path = tmp_path / "earlier.json"
    before = read_earlier(path)
    write_earlier(path, before.after(1, "look", ["Ann", "Bob"]))
    again = read_earlier(path)
    assert b"Ann" not in path.read_bytes()
    assert again.digests(["Ann"]) < frozenset(again.shown[0].patients)
    assert read_earlier(tmp_path / "other.json").digests(["Ann"]) != again.digests(["Ann"])
    path.write_bytes(b"{")
    with pytest.raises(RunError, match=r"earlier\.json, which says of which patients .* is damaged"):
        read_earlier(path)


def test_what_is_shown_of_one_thing_says_nothing_of_another() -> None:
    looks = EarlierLooks("00").after(1, "dice/lesion", "abcdefgh")
    assert looks.gives_few("dice/lesion", "abcdefghi", 3)
    assert not looks.gives_few("dice/lesion", "abcdefghijk", 3)
    assert not looks.gives_few("dice/liver", "abcdefghi", 3)


def grown(path: Path, patients: int) -> Path:
    """The first patients of one table: a folder into which cases come."""
    lines = table(path, 40, 2, target=True).read_text().splitlines()
    path.write_text("\n".join(lines[: patients + 1]) + "\n")
    return path


def test_a_folder_that_grew_by_a_patient_gives_no_second_look(tmp_path: Path) -> None:
    run = run_of(tmp_path / "made", TABLE)
    asked, data = Asked([table(tmp_path / "before.csv", 60, 1)]), tmp_path / "new.csv"
    watch(run, grown(data, 20), name="north", asked=asked)
    watch(run, data, name="north")  # the same patients tell nothing new
    state = WatchFolder(run.path, "north")
    page, sketch = state.page.read_bytes(), state.sketch.read_bytes()
    for number in (21, 24, 19):
        with pytest.raises(TooFewPatientsError, match=r"would give those of fewer than 5 patients who came"):
            watch(run, grown(data, number), name="north")
    assert (state.page.read_bytes(), state.sketch.read_bytes(), len(state.read_looks())) == (page, sketch, 2)
    assert watch(run, grown(data, 25), name="north").look.number == 3
    # The patients who came since the first look, and three of them: each looks apart from the first.
    with pytest.raises(TooFewPatientsError, match=r"remove earlier\.json from watch/north"):
        watch(run, grown(data, 28), name="north", own=OwnChoices(b"another secret of the site file"))


def test_another_name_of_the_watch_is_no_way_around(tmp_path: Path) -> None:
    run = run_of(tmp_path / "made", TABLE)
    asked, data = Asked([table(tmp_path / "before.csv", 60, 1)]), tmp_path / "new.csv"
    watch(run, grown(data, 20), name="north", asked=asked)
    with pytest.raises(TooFewPatientsError, match=r"watch of 'again': .* of 'north', .* from watch/north of"):
        watch(run, grown(data, 21), name="again", asked=asked)
    assert not WatchFolder(run.path, "again").page.exists()
    assert watch(run, grown(data, 25), name="again").look.number == 1


def test_rows_of_labels_are_withheld_where_one_more_patient_has_a_label(tmp_path: Path) -> None:
    run = run_of(tmp_path / "made", TABLE)
    state, data = WatchFolder(run.path, "north"), table(tmp_path / "new.csv", 30, 2, target=True)
    state.path.mkdir(parents=True)
    study = read_run_study(run.study)

    def shown(look: int, number: int) -> dict[str, float | None]:
        chosen = {f"p2-{one}" for one in range(number)}
        measure_look(study, run, state, data, "north", OwnChoices(), look, chosen)
        return {row.metric: row.value for row in read_rows(state.rows) if row.round == look}

    first, second, third = shown(1, 20), shown(2, 21), shown(3, 25)
    assert first["brier"] is not None
    assert second.pop("patients") == 21
    assert set(second.values()) == {None}
    assert third["brier"] is not None
