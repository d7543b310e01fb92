"""What the README shows runs, and what it says of the quickstart is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from medfed.evaluation.rows import read_rows
from medfed.evaluation.summarise import read_rounds
from medfed.pipeline import train as run

ROOT = Path(__file__).parents[1]


def test_the_library_example_runs_and_both_sites_took_part(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a Trainer as it comes writes its logs where it runs
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(example.splitlines()) <= 20
    names: dict = {}
    exec(example, names)
    assert names["final"].round == 3
    assert set(names["final"].weights) == {"net.weight", "net.bias"}


def test_what_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:configs|docs|benchmarks|sample_data|medfed)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_quickstart_learns_and_federation_beats_every_hospitals_own_model(tmp_path):
    done = run.train(ROOT / "configs" / "quickstart.yaml", out=tmp_path / "run")
    curve: dict[int, list[float]] = {}
    for entry in read_rounds(done.rounds):
        if "val/dice" in entry["scalars"]:  # a line's score is of the model before its round
            curve.setdefault(entry["round"], []).append(entry["scalars"]["val/dice"])
    means = [sum(values) / len(values) for _, values in sorted(curve.items())]
    assert len(means) == 11  # ten rounds, and the final model
    assert means[0] < 0.2
    assert means[-1] >= 0.75
    assert sum(means[-3:]) > sum(means[3:6]) > sum(means[:3])
    held_out = {
        row.model: row.value
        for row in read_rows(done.rows)
        if row.site == "university" and row.metric == "dice" and row.group is None and row.against is None
    }
    own = [value for model, value in held_out.items() if model.startswith("local:")]
    assert len(own) == 4
    assert held_out["federated"] > max(own)
    facts = json.loads(done.facts.read_text())
    assert facts["held_out"] == ["university"]
