"""`medfed new` on a hospital of each layout writes a study that opens, and trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data.layouts.hospitals_of_each import EACH

from medfed.data.folder_options import FolderOptions
from medfed.data.layouts import Survey, choose_layout, parse_layout
from medfed.data.settings import Images
from medfed.pipeline.drafting import draft_study, write_draft
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.train import train
from medfed.registry import kind_of
from medfed.study.reading import read_study


def drafted(tmp_path: Path, name: str) -> Path:
    """Write two hospitals of a layout and the study that `medfed new` drafts for them."""
    kind, write, given = EACH[name]
    layout = parse_layout(given) if given else None
    folders = {}
    for site in ("north", "south"):
        folders[site] = tmp_path / site
        folders[site].mkdir()
        write(folders[site])
        assert kind_of(choose_layout(Survey.of(folders[site]), layout)) == kind
    write_draft(tmp_path / "study.yaml", draft_study("study", folders, {}, options=FolderOptions(layout)))
    return tmp_path / "study.yaml"


def test_the_page_shows_a_tree_of_each_layout() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/folder-layouts.md").read_text()
    listed = re.findall(r"\| \[([^]]+)\]\(#([^)]+)\) \| `(\w+)`", page)
    assert sorted(kind for _, _, kind in listed) == sorted(kind for kind, _, _ in EACH.values())
    assert len(listed) == 14
    sections = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-"): text
        for heading, text in re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", page)
    }
    for name, anchor, _ in listed:
        assert re.search(r"(?m)^    \S+", sections[anchor]), f"no tree of {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_the_drafted_study_opens_its_hospital_and_trains(tmp_path: Path, name: str) -> None:
    path = drafted(tmp_path, name)
    study = read_study(path)
    data = hospital_of(study, "north", str(tmp_path / "north")).data
    assert data.examples >= 3
    assert data.index.left_out == {}
    channels = {"nnU-Net raw": 2, "one folder per channel": 2, "BraTS": 4}.get(name, 1)
    image, _ = data.original(data.cases("train")[0])
    assert image.array.shape[0] == channels
    if study.task.needs == "segment":
        _, label = data.original(data.cases("train")[0])
        assert label is not None
        assert label.array.any()

    assert isinstance(study.data, Images)
    if study.data.plan != "given":
        assert study.data.plan.min_patients <= len(data.cases("train"))
    run = train(path, out=tmp_path / "run", overrides=("train.rounds=1", "train.epochs=1"))
    assert run.report.is_file()
