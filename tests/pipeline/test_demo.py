"""`medfed demo` makes small hospitals by the committed script, wherever that is, and ends with a report."""

from __future__ import annotations

import csv
from importlib.metadata import PackagePath
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import RunError
from medfed.pipeline import demo

ROOT = Path(__file__).parents[2]


def test_the_hospitals_are_small_and_cover_every_split(tmp_path, monkeypatch):
    script = demo._script()
    monkeypatch.setattr(script, "HOSPITALS", [one for one in script.HOSPITALS if one.name == "south"])
    monkeypatch.setattr(demo, "_script", lambda: script)
    demo.make_hospitals(tmp_path)
    rows = list(csv.DictReader((tmp_path / "south" / "cases.csv").open()))
    assert len({row["patient"] for row in rows}) == demo.DISEASED + demo.HEALTHY
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert all((tmp_path / "south" / row["image"]).exists() for row in rows)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("kept")
    result = CliRunner().invoke(main, ["demo", str(tmp_path), "--no-open"])
    assert result.exit_code == 1
    assert "this folder is not empty; give another one: medfed demo FOLDER" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_a_checkout_the_wheels_copy_is_used_and_a_missing_one_is_said(tmp_path, monkeypatch):
    installed = tmp_path / "share" / "medfed" / "make.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    file = PackagePath("../../../share/medfed/make.py")
    file.dist = SimpleNamespace(locate_file=lambda path: installed)
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setattr(demo, "distribution", lambda name: SimpleNamespace(files=[file]))
    assert demo.shared_file("sample_data/make.py") == installed
    with pytest.raises(RunError, match=r"lacks share/medfed/quickstart\.yaml; install the wheel again"):
        demo.shared_file("configs/quickstart.yaml")


@pytest.mark.slow
def test_the_demo_ends_with_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DISEASED", 5)
    monkeypatch.setattr(demo, "HEALTHY", 2)
    run = demo.demo(tmp_path / "demo", overrides=(*demo.OVERRIDES, "train.rounds=1", "train.epochs=1"))
    assert "Federated model" in run.report.read_text()
