"""Two hospitals over a shared folder choose what one process chooses, and every party says the same."""

from __future__ import annotations

import pytest
import torch
from commands import Across
from hospitals import STUDY

from medfed.pipeline.create_run import open_run
from medfed.pipeline.train import train
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study

AUTO = (
    STUDY.format(rounds=2)
    .partition("sites:")[0]
    .replace("classes: [background, lesion]", "classes: [background, lesion], postprocess: auto")
    .replace("evaluation: {", "evaluation: {local_models: false, pooled_model: false, robustness: false, ")
)


@pytest.mark.slow
def test_a_shared_folder_carries_the_choice_to_hub_and_hospitals(tiny, tmp_path):
    path = tmp_path / "here.yaml"
    path.write_text(f"{AUTO}sites: {{north: {tiny / 'north'}, south: {tiny / 'south'}}}\n")
    here = train(path, out=tmp_path / "here").read_facts().postprocess
    across = Across(tmp_path / "across", tiny, AUTO, kind="folder")
    try:
        digest = study_digest(read_study(across.folder / "study.yaml"))
        for party in ("hub", *across.sites):
            across.start(party, "" if party == "hub" else digest)
        across.ended()
        for folder in (across.run, *(across.site_run(site) for site in across.sites)):
            run = RunFolder(folder)
            assert run.read_facts().postprocess.rules == here.rules
            assert open_run(run)[2].task.postprocess == here.rules
            saved = torch.load(run.checkpoint("federated"), weights_only=True)
            assert saved["postprocess"] == here.rules
        assert here.sentence in (across.run / "report.html").read_text()
    finally:
        across.end()
