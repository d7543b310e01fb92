"""The examples in README and docs/ run, their links resolve, and the README's quickstart scores are true."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from medfed.cli import main
from medfed.evaluation.rows import read_rows
from medfed.pipeline import train as run
from medfed.runs.rounds import read_rounds

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in this language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # by default, a Trainer writes its logs to the current folder
    names: dict = {}
    for block in blocks(page, "python"):
        exec(block, names)
    if page.stem == "add-a-part":  # its kinds are held to their contracts, and nothing is trained
        return
    if page.stem == "other-networks":  # tests/exchange/end_to_end/ train in real ones
        assert names["exchange"].rounds == 3
        return
    assert names["final"].round == 3
    assert set(names["final"].weights) == {"net.weight", "net.bias"}


def test_the_readme_example_fits_a_screen():
    (example,) = blocks(ROOT / "README.md", "python")
    assert len(example.splitlines()) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    text = page.read_text()
    for path in re.findall(r"`((?:configs|docs|benchmarks|sample_data|medfed|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    text = re.sub(r"^(hooks|  .*!!.*)$", "", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    listed = set(re.findall(r"[\w/-]+\.md", json.dumps(yaml.safe_load(text)["nav"])))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


# Messages on the page of problems that are make's and Python's, not medfed's.
OTHERS = {"medfed needs Python 3.11 or newer", "No module named 'opacus'"}


def test_each_message_that_common_problems_quotes_is_in_the_code():
    source = "\n".join(path.read_text() for path in (ROOT / "medfed").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message that stands on several lines
    source = re.sub(r"\{[^{}]*\}", "{}", source)
    missing = []
    for row in re.findall(
        r"^\| (.*?) \|", (ROOT / "docs/how-to/common-problems.md").read_text(), re.MULTILINE
    ):
        for message in set(re.findall(r"`([^`]+)`", row)) - OTHERS:
            # What a message says of the case at hand: `...`, a name in quotes, N of M.
            fixed = [part.strip() for part in re.split(r"\.\.\.|'\w+'|\b[NM]\b", message)]
            missing += [message for part in fixed if part not in source]
    assert missing == []


# Training as on the page takes minutes, so it is shortened here; everything else runs as shown.
SHORTER = {"train": ["--set", "train.rounds=2", "--set", "train.epochs=1"]}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["first-federation", "own-folder"])
def test_the_commands_of_a_tutorial_run_in_their_order(page, tmp_path, monkeypatch):
    for folder in ("configs", "sample_data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "tutorials" / f"{page}.md", "console"):
        for command in re.findall(r"^\$ (medfed .*)$", block, re.MULTILINE):
            program, *arguments = shlex.split(command, comments=True)
            expected = [line for line in block.splitlines() if line and not line.startswith("$ ")]
            done = CliRunner().invoke(main, arguments + SHORTER.get(arguments[0], []))
            assert program == "medfed"
            if expected:  # the page shows a mistake and its error message
                assert expected[0] in done.output
            else:
                assert done.exit_code in ((0, 1) if arguments[0] == "check" else (0,)), (
                    f"{command}\n{done.output}"
                )


@pytest.mark.slow
def test_the_quickstart_learns_and_federation_beats_every_hospitals_own_model(tmp_path):
    done = run.train(ROOT / "configs" / "quickstart.yaml", out=tmp_path / "run")
    curve: dict[int, list[float]] = {}
    for entry in read_rounds(done.rounds):
        if "val/dice" in entry.scalars:  # the score is that of the model before the round
            curve.setdefault(entry.round, []).append(entry.scalars["val/dice"])
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


def threats() -> list[list[str]]:
    """Return the rows of the threat model's tables whose last column names tests, as cells."""
    text = (ROOT / "docs" / "threat-model.md").read_text()
    rows, in_table = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and cells[-1] == "test":
            in_table = True
        elif in_table and line.startswith("| "):
            rows.append(cells)
        elif not line.startswith("|"):
            in_table = False
    return rows


def test_each_row_of_the_threat_model_names_tests_that_exist_or_says_that_nothing_holds():
    rows = threats()
    assert len(rows) > 60
    for *_, holds, tests in rows:
        if tests == "-":
            assert holds.strip("*").startswith("no"), holds
            continue
        for name in tests.split(", "):
            place = ROOT / "tests" / name
            assert place.with_suffix(".py").is_file() or (name.endswith("/") and place.is_dir()), name


def test_the_container_is_built_in_ci_from_files_that_reach_it_and_extras_that_exist():
    text = (ROOT / "docs" / "deploy" / "Containerfile").read_text()
    steps = [
        step.get("run", "")
        for step in yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"][
            "container"
        ]["steps"]
    ]
    assert any("--file docs/deploy/Containerfile" in step for step in steps)
    extras = re.search(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)[1].split(",")
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras} <= {*offered}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [line for line in lines if not line.startswith("#")]
    assert not {"constraints.txt", "medfed", ".git", "pyproject.toml", "README.md"} & {*ignored}
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert "HEALTHCHECK" in text
