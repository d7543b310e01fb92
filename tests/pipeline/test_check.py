"""`medfed check` for a study: its site, its secret, its own policy, and a folder that cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import StudyError
from medfed.models.networks.resnet import ResNet
from medfed.pipeline._draft import Draft
from medfed.pipeline.check import OwnChoices, check, site_of_folder
from medfed.pipeline.drafting import write_draft
from medfed.pipeline.factory import hospital_of, module_of
from medfed.study.reading import read_study
from medfed.study.study import Study

from .two_tables import write_tables


def test_a_table_where_the_study_wants_images_and_the_other_way_round(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    table, images = root / "sample_data/tabular/north.csv", root / "sample_data/north"
    run = CliRunner()
    first = run.invoke(main, ["check", str(table), "--study", str(root / "configs/quickstart.yaml")])
    assert (first.exit_code, "the site's data folder is not a folder" in first.output) == (2, True)
    other = run.invoke(main, ["check", str(images), "--study", str(root / "configs/tabular.yaml")])
    assert other.exit_code == 2
    assert "no column 'chest_pain'" in other.output
    assert "Ready" not in first.output + other.output


def test_check_reads_the_site_files_headings(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    table, study, site = tmp_path / "t.csv", root / "configs/tabular.yaml", tmp_path / "site.yaml"
    table.write_text((root / "sample_data/tabular/north.csv").read_text().replace(",age,", ",Alter,", 1))
    site.write_text(
        "name: north\ndata: t.csv\nexchange: {kind: folder, url: shared}\ncolumns: {age: Alter}\n"
    )
    run = CliRunner()
    assert run.invoke(main, ["check", str(table), "--study", str(study)]).exit_code == 2
    result = run.invoke(main, ["check", str(table), "--study", str(study), "--site", str(site)])
    assert result.exit_code == 0, result.output


def checked(capsys: pytest.CaptureFixture[str], *arguments: Any, **own: Any) -> tuple[int, dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    code = check(*arguments, lambda answer: answers.append(dict(answer)) or True, None, OwnChoices(**own))
    assert capsys.readouterr().out == ""
    return code, json.loads(json.dumps(answers[0]))


def test_a_folder_that_cannot_be_used_is_an_answer_and_names_no_file(tmp_path: Path, capsys) -> None:
    code, answer = checked(capsys, tmp_path / "Meier", None)
    assert code == answer["exit"] == 2
    assert "Meier" not in answer["error"]
    study = write_tables(tmp_path)
    page = tmp_path / "north.csv" / "page.html"  # its folder is a file
    answers: list[Any] = []
    assert check(tmp_path / "north.csv", study, lambda answer: answers.append(answer) or True, page) == 2
    assert answers == [{"error": "a file can't be read or written (errno 17)", "exit": 2}]


def test_a_simulated_sites_folder_is_known_by_its_place(tmp_path: Path) -> None:
    study = read_study(write_tables(tmp_path), ["held_out={west: west.csv}"])
    (tmp_path / "link").symlink_to(tmp_path / "south.csv")
    for place, site in (("north.csv", "north"), ("link", "south"), ("west.csv", "west"), ("other.csv", "")):
        assert site_of_folder(study, tmp_path / place) == site


def test_splits_are_those_that_the_simulation_trains_with(tmp_path: Path, capsys) -> None:
    study_file = write_tables(tmp_path)
    # Patients have 1 to 7 rows, so that the numbers of rows tell which patients are in a split.
    rows = "".join(f"P{n},{n / 10},{n % 2}\n" * (n % 7 + 1) for n in range(60))
    (tmp_path / "north.csv").write_text("patient,x,ill\n" + rows)  # no column with splits: the secret decides
    study = read_study(study_file)
    data = hospital_of(study, "north", study.sites["north"] or "").data
    trained = {split: len(data.cases(split)) for split in ("train", "val", "test")}
    _, answer = checked(capsys, tmp_path / "north.csv", study_file)
    assert answer["facts"]["splits"] == ", ".join(f"{trained[split]} {split}" for split in sorted(trained))
    _, other = checked(
        capsys, tmp_path / "north.csv", study_file, name="north", secret=b"another secret of a site"
    )
    assert other["facts"]["splits"] != answer["facts"]["splits"]


def test_what_the_policy_refuses_is_said_before_anything_trains(tmp_path: Path, capsys) -> None:
    study_file = write_tables(tmp_path)
    asked: list[int] = []

    def refusals(study: Study, cases: int) -> list[str]:
        asked.append(cases)
        return ["privacy: expected secure_sum"] if cases < 3 else []

    code, answer = checked(capsys, tmp_path / "north.csv", study_file, refusals=refusals)
    assert code == 2
    assert (
        answer["verdict"]
        == "This hospital can't take part in 'two-tables': its own site file refuses the study."
    )
    assert answer["problems"][0]["code"] == "policy"
    assert "expected secure_sum" in json.dumps(answer["problems"][0])
    code, answer = checked(capsys, tmp_path / "south.csv", study_file, refusals=refusals)
    assert "policy" not in {problem["code"] for problem in answer["problems"]}
    assert asked == [2, 4]  # the training cases of each


def test_check_and_new_refuse_a_patch_of_which_a_plug_in_network_leaves_nothing(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet that, as a plug-in may, says nothing of sizes: 8 x 8 is one pixel before its last stride."""
    monkeypatch.setattr(ResNet, "check_size", lambda network, size: None)
    text = (
        "name: s\ntask: {kind: classify, classes: [healthy, ill]}\nnetwork: {kind: resnet, width: 2}\n"
        "data: {kind: images, spatial_dims: 2, spacing_mm: fit, patch: [8, 8]}\n"
        "train: {rounds: 1, optimiser: {kind: sgd, lr: 0.1}}\nsites: {north: north, south: south}\n"
    )
    study = tmp_path / "study.yaml"
    study.write_text(text)
    (tmp_path / "north").mkdir()
    with pytest.raises(StudyError, match="of an image of 8 x 8 voxels only one number is left") as trained:
        module_of(read_study(study))
    code, answer = checked(capsys, tmp_path / "north", study)
    assert (code, answer["error"]) == (2, str(trained.value))
    with pytest.raises(StudyError) as drafted:
        write_draft(tmp_path / "draft.yaml", Draft(text, (), ()))
    assert str(drafted.value) == str(trained.value)
    assert not (tmp_path / "draft.yaml").exists()


def test_a_folder_is_checked_without_lightning() -> None:
    """Its import takes longer than the check of a small folder."""
    words = "import sys, medfed.pipeline.check; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
