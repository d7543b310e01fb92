"""`medfed describe` over folders of this machine."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import StudyError
from medfed.pipeline.describe import describe_study, is_in_one_process, only_described
from medfed.pipeline.train import train
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import entries


def test_the_command_writes_a_table_and_the_plan_and_trains_nothing(tiny, tmp_path):
    words = ["describe", str(tiny / "tiny.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    words += ["--set", "data.plan={min_patients: 2, voxels: 4096}"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.output == f"table: {tmp_path / 'run' / 'table1.html'}\n"
    plan = yaml.safe_load((tmp_path / "run" / "plan.yaml").read_text())
    assert plan["data"]["plan"] == "given"
    # The hospitals' spacing is 2 mm, and a patch of 16^3 is the whole image.
    assert (plan["data"]["spacing_mm"], plan["data"]["patch"]) == ([2.0, 2.0, 2.0], [16, 16, 16])
    sent = [one for one in entries(tmp_path / "run" / "audit.jsonl") if one["event"] == "sent"]
    assert sorted(one["site"] for one in sent) == ["north", "south"]
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
    again = CliRunner().invoke(main, words)
    assert again.exit_code != 0
    assert "is not empty" in again.output


def test_a_hospital_without_usable_data_is_named_and_left_out(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    lines = []

    class Progress:
        log = staticmethod(lines.append)

    overrides = [f"sites.east={tmp_path / 'empty'}", "evaluation.smallest_group=2"]
    run = describe_study(tiny / "tiny.yaml", out=tmp_path / "run", overrides=overrides, progress=Progress())
    assert "patients (training),,8,4,4" in run.table_one_csv.read_text()
    assert any("site 'east'" in line and "without this hospital" in line for line in lines)


def test_which_studies_are_described_here(tiny):
    assert is_in_one_process(tiny / "tiny.yaml")
    assert not is_in_one_process(tiny / "tiny.yaml", ["exchange={kind: folder, url: share}"])
    assert not is_in_one_process(tiny / "tiny.yaml", ["sites.east=null"])


def test_a_described_study_is_another_study(tiny):
    study = read_study(tiny / "tiny.yaml")
    only = only_described(study)
    assert study_digest(only) != study_digest(study)
    assert only_described(only) == only


def test_a_simulation_writes_the_table_before_it_trains_and_a_study_without_training_is_not_trained(
    tiny, tmp_path
):
    quick = ["train.rounds=1", "evaluation.local_models=false", "evaluation.pooled_model=false"]
    quick += ["evaluation.robustness=false", "evaluation.smallest_group=2"]
    run = train(tiny / "tiny.yaml", out=tmp_path / "run", overrides=[*quick, "describe={}"])
    assert "patients (training),,8,4,4" in run.table_one_csv.read_text()
    with pytest.raises(StudyError, match="run `medfed describe`"):
        train(tiny / "tiny.yaml", out=tmp_path / "only", overrides=["describe.only=true"])
    assert not (tmp_path / "only").exists()


def test_nothing_is_retrained_by_a_description(tiny):
    done = CliRunner().invoke(main, ["describe", str(tiny / "tiny.yaml"), "--without", "north"])
    assert "omit --without" in done.output
    assert done.exit_code != 0
