"""The page of a watch: words for each comparison, and the study's own result beside a look's."""

from __future__ import annotations

import pytest

from medfed.evaluation.drift.compare import Compared
from medfed.evaluation.rows import FEDERATED, Row, write
from medfed.pipeline.watch.page import direction, in_words, over_time, title_of
from medfed.pipeline.watch.state import WatchFolder
from medfed.runs.folder import RunFolder


def one(**more) -> Compared:
    about = {"name": "noise", "kind": "input", "what": "values", "reference": 9, "look": 8, "state": "alarm"}
    return Compared(**{**about, "psi": 1.27, "p": 1e-5, "p_holm": 1e-4, **more})


@pytest.mark.parametrize(
    ("above", "words"),
    [(0.95, "higher (above an earlier patient's in 95%)"), (0.1, "lower (above an earlier patient's in 10%)"),
     (0.5, "another spread"), (None, "other shares")],
)  # fmt: skip
def test_where_new_values_lie(above, words: str) -> None:
    assert direction(one(above=above)) == words


def test_a_comparison_in_words() -> None:
    assert in_words(one(above=1.0)).startswith("noise (input): higher")
    assert in_words(one(above=1.0)).endswith("PSI 1.3, corrected p < 0.001")
    assert title_of(one(what="missing")) == "noise, missing"


def test_results_stand_beside_the_studys_own(tmp_path) -> None:
    def row(site: str, round: int, value: float | None, **more) -> Row:
        return Row(
            round=round, site=site, split="test", model=FEDERATED, metric="auroc", value=value, n=30, **more
        )

    folder, state = RunFolder(tmp_path), WatchFolder(tmp_path, "north")
    state.path.mkdir(parents=True)
    write(folder.rows, [row("all", 3, 0.8), row("north", 3, 0.7, against="untrained"), row("south", 3, 0.6)])
    write(
        state.rows,
        [row("north", 2, None, note="fewer than 5 patients"), row("north", 1, 0.75, low=0.7, high=0.8)],
    )
    (result,) = over_time(folder, state, "north")
    assert result.title == "AUROC"
    assert result.study == "0.80, n 30, all"
    assert result.looks == [(1, "0.75 (0.70 to 0.80), n 30"), (2, "fewer than 5 patients")]
