"""Every task of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import msgspec
import pytest
import torch
from contract import checks_of, run
from process_group import run_group
from torch.utils.data import DataLoader

from medfed.models.tasks import Task
from medfed.registry import kinds
from medfed.testing import check_task
from medfed.testing._tasks import VOLUME, Cases, loaders, module_for, trainer

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")

TASKS = kinds("tasks")


def example(name: str) -> Task:
    settings = {"classes": ("healthy", "ill")} if "classes" in TASKS[name].__struct_fields__ else {}
    return TASKS[name](**settings)  # type: ignore[return-value]


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> Task:
    return example(request.param)


@checks_of(check_task)
def test_it_keeps_the_contract(task: Task, check: str) -> None:
    run(check_task, check, task)


def test_validation_leaves_nothing_behind(task: Task, tmp_path: Path) -> None:
    module = module_for(task)
    trainer(tmp_path).validate(module, loaders(task)[1], verbose=False)
    kept = {
        name: value for name, value in vars(module).items() if isinstance(value, (list, dict, torch.Tensor))
    }
    own = {
        name: value for name, value in kept.items() if name in ("_rows", "_cases") or torch.is_tensor(value)
    }
    assert not any(len(value) for value in own.values())
    assert own, "this test knows modules by the lists they gather in"


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    """Five cases on two processes: the sampler gives one of them twice, and it must count once."""
    (tmp_path / "two.py").write_text(_TWO_PROCESSES)
    done = run_group([sys.executable, "two.py"], timeout=300, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    together = msgspec.json.decode((tmp_path / "scores.json").read_bytes())
    assert together.keys() == TASKS.keys()
    for name, actual in together.items():
        task = example(name)
        loader = DataLoader(Cases(task.needs, 5, VOLUME))
        alone = trainer(tmp_path).validate(module_for(task), loader, verbose=False)[0]
        assert actual.keys() == alone.keys()
        assert actual == pytest.approx(alone, rel=1e-5)


# Lightning starts the second process by running the script again.
_TWO_PROCESSES = """
from pathlib import Path
import msgspec
from medfed.registry import kinds
from medfed.testing import _tasks as contract
scores = dict()
for name, record in kinds("tasks").items():
    task = record(**(dict(classes=("healthy", "ill")) if "classes" in record.__struct_fields__ else dict()))
    ours = contract.trainer(Path("."), devices=2, strategy="ddp")
    loader = contract.DataLoader(contract.Cases(task.needs, 5, contract.VOLUME))
    scores[name] = ours.validate(contract.module_for(task), loader, verbose=False)[0]
if ours.is_global_zero:
    Path("scores.json").write_bytes(msgspec.json.encode(scores))
"""


def test_listing_tasks_needs_no_torch() -> None:
    code = (
        "import sys; from medfed.registry import kinds; kinds('tasks'); "
        "print({'torch', 'monai', 'pytorch_lightning'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
