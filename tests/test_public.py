"""The public names, the cost of importing them, and their types in a user's type checker."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medfed
from medfed import errors

ROOT = Path(__file__).parents[1]


def test_public_names_are_sorted_and_there():
    assert list(medfed.__all__) == sorted(medfed.__all__)
    for name in medfed.__all__:
        assert getattr(medfed, name) is not None
    assert set(dir(medfed)) == set(medfed.__all__)


def test_every_error_is_public():
    raised = {name for name in vars(errors) if name.endswith("Error")}
    assert raised == {name for name in medfed.__all__ if name.endswith("Error")}


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(medfed.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: line.module for line in block.body for name in line.names}
    assert sorted(seen) == medfed.__all__
    assert seen == {name: medfed._MODULES.get(name, "medfed.errors") for name in medfed.__all__}


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match="no attribute 'federate_all'; public are AuditError, "):
        medfed.federate_all  # noqa: B018


@pytest.mark.parametrize("statement", ["import medfed", "import medfed.cli"])
def test_importing_does_not_load_torch(statement):
    heavy = ("torch", "monai", "numpy", "pandas")
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# mypy must refuse each line that has a comment, with the error code in the comment.
USER_FILE = """\
import medfed
import torch
from medfed.aggregation.median import Median

exchange = medfed.MemoryExchange()
medfed.FederatedCallback("north", exchange, local_epochs=2, keep_local=["norm"])
medfed.FederatedCallback(1, 2, nonsense=3)  # call-arg
medfed.raed("x")  # attr-defined
volumes: list[medfed.Volume] = medfed.read("x")
medfed.read(3)  # arg-type
weights: dict[str, torch.Tensor] = medfed.weights_of(torch.nn.Linear(3, 1))
medfed.load(torch.nn.Linear(3, 1), weights)
medfed.load(weights)  # call-arg
final = medfed.run_federation({"north": lambda exchange: None}, weights, rule=medfed.FedAvg(), rounds=3)
medfed.run_federation({"north": lambda exchange: None}, weights, rule=Median(), rounds="3")  # arg-type
round_number: int = final.round
study: medfed.Study = medfed.read_study("study.yaml", ["train.rounds=3"])
study.tarin  # attr-defined
try:
    medfed.train("study.yaml")
except medfed.QuorumError as error:
    raise medfed.MedfedError from error
"""


# Of each public name a user's mypy must know the type.
USER_FILE += "".join(f"reveal_type(medfed.{name})\n" for name in medfed.__all__)


@pytest.mark.slow
def test_a_users_mypy_accepts_right_uses_and_refuses_wrong_ones(tmp_path):
    (tmp_path / "user.py").write_text(USER_FILE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--ignore-missing-imports",
         "--follow-imports", "silent", "--cache-dir", ROOT / ".mypy_cache", "user.py"],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    matches = re.findall(r"user\.py:(\d+): error: .*\[(.*)\]", done.stdout)
    refused = [(int(line), code) for line, code in matches]
    lines = enumerate(USER_FILE.splitlines(), 1)
    wanted = {number: line.partition("# ")[2] for number, line in lines if "# " in line}
    assert {line for line, _ in refused} == wanted.keys(), done.stdout + done.stderr
    codes = {number: {code for line, code in refused if line == number} for number in wanted}
    assert all(wanted[number] in codes[number] for number in wanted), done.stdout
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == len(medfed.__all__)
    # numpy's arrays of voxels have any type, and fsspec's options any values.
    vague = {name for name, text in zip(medfed.__all__, revealed, strict=True) if re.search(r"\bAny\b", text)}
    assert vague <= {"Folder", "Volume"}, done.stdout
