"""What every task keeps: it trains under a real Trainer, scores alike however cases split, adds no tensor.

The tasks are those the folder holds, so a new file is held to this without an edit here.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from medfed import registry as kinds
from medfed.errors import StudyError
from medfed.models.networks.fully_connected import FullyConnected
from medfed.models.networks.resnet import ResNet
from medfed.models.networks.unet import UNet
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.cosine import Cosine
from medfed.models.tasks import Needs, Task

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")

TASKS = kinds.kinds("tasks")
PATCH = (8, 8, 8)
VOLUME = (12, 8, 9)
FEATURES = 5


def example(name: str) -> Task:
    settings = {"classes": ("healthy", "ill")} if "classes" in TASKS[name].__struct_fields__ else {}
    return TASKS[name](**settings)  # type: ignore[return-value]


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> Task:
    return example(request.param)


class Cases(Dataset):
    """Random cases of what a task needs; a case is the same whenever it is asked for."""

    def __init__(self, needs: str, count: int, size: tuple[int, ...]) -> None:
        self.needs, self.count, self.size = needs, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        case: dict[str, Any] = {"case": f"case-{index}"}
        if self.needs in ("segment", "classify"):
            case["image"] = torch.randn(1, *self.size, generator=generator)
        else:
            case["features"] = torch.randn(FEATURES, generator=generator)
        if self.needs == "segment":
            return case | {"label": (case["image"] > 0.5).to(torch.uint8)}
        if self.needs == "survival":
            time = float(torch.rand((), generator=generator))
            return case | {"target": torch.tensor([time, index % 3 != 0])}
        return case | {"target": index % 2}


def network_for(task: Task) -> torch.nn.Module:
    torch.manual_seed(0)
    if task.needs == "segment":
        return UNet(channels=(4, 8)).build(1, task.outputs, PATCH)
    if task.needs == "classify":
        return ResNet(width=4, norm="group").build(1, task.outputs, VOLUME)
    return FullyConnected(hidden=(4,)).build(FEATURES, task.outputs)


def module_for(task: Task) -> pl.LightningModule:
    return task.module(network_for(task), optimiser=SGD(lr=0.01), schedule=Cosine(), epochs=2, patch=PATCH)


def trainer(folder: Path, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=2, default_root_dir=folder, **quiet, **settings)


def loaders(task: Task) -> tuple[DataLoader, DataLoader]:
    training = Cases(task.needs, 6, PATCH if task.needs == "segment" else VOLUME)
    return DataLoader(training, batch_size=3), DataLoader(Cases(task.needs, 5, VOLUME), batch_size=2)


def test_it_says_what_it_needs(task: Task) -> None:
    assert task.needs in get_args(Needs)
    assert task.outputs >= 1
    assert kinds.summary(type(task))


def test_a_study_file_can_hold_it(task: Task) -> None:
    assert msgspec.json.decode(msgspec.json.encode(task), type=type(task)) == task


def test_a_loss_for_another_task_is_refused(task: Task) -> None:
    for name, record in kinds.kinds("losses").items():
        if task.needs not in record.serves:  # type: ignore[attr-defined]
            with pytest.raises(StudyError, match=rf"loss '{name}' is for .*; take one of"):
                msgspec.structs.replace(task, loss=record())


def test_it_trains_and_its_checkpoint_holds_the_network_and_plain_numbers(task: Task, tmp_path: Path) -> None:
    module = module_for(task)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ours = trainer(tmp_path)
    ours.fit(module, *loaders(task))
    logged = ours.callback_metrics
    assert {"train/loss", "val/loss"} <= set(logged)
    # What is not declared is refused at the site (federation/egress.py), so a forgotten name would stop every
    # study of this task.
    assert {name for name in logged if name.startswith("val")} <= set(task.scores)
    assert all(torch.isfinite(value) for value in logged.values())
    assert all(name.startswith("network.") for name in before)
    assert any(not torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())
    saved = torch.load(ours.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["state_dict"].keys() == before.keys()
    assert "hyper_parameters" not in saved


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


def test_scores_do_not_depend_on_how_cases_are_batched(task: Task, tmp_path: Path) -> None:
    cases = Cases(task.needs, 5, VOLUME)
    module = module_for(task)
    one, five = (
        trainer(tmp_path).validate(module, DataLoader(cases, batch_size=size), verbose=False)[0]
        for size in (1, 5)
    )
    assert one.keys() == five.keys()
    assert one == pytest.approx(five, rel=1e-5)


def test_a_prediction_names_its_case_and_is_finite(task: Task, tmp_path: Path) -> None:
    batches = trainer(tmp_path).predict(module_for(task), loaders(task)[1])
    assert batches is not None
    assert [case for batch in batches for case in batch["case"]] == [f"case-{index}" for index in range(5)]
    for batch in batches:
        answer = batch["risk"] if task.needs == "survival" else batch["probabilities"]
        assert len(answer) == len(batch["case"])
        assert torch.isfinite(answer).all()
        if task.needs != "survival":
            assert torch.allclose(answer.sum(dim=1), torch.ones(()))
        if task.needs == "segment":
            assert answer.shape[2:] == VOLUME
            assert batch["label"].shape == (len(answer), 1, *VOLUME)


def test_it_trains_in_bfloat16(task: Task, tmp_path: Path) -> None:
    ours = trainer(tmp_path, precision="bf16-mixed")
    ours.fit(module_for(task), *loaders(task))
    assert all(torch.isfinite(value) for value in ours.callback_metrics.values())


def test_a_run_without_epochs_is_refused(task: Task, tmp_path: Path) -> None:
    module = task.module(network_for(task), optimiser=SGD(), schedule=Cosine(), epochs=0, patch=PATCH)
    with pytest.raises(StudyError, match=r"train\.epochs: 0; a run needs at least 1"):
        trainer(tmp_path).fit(module, *loaders(task))


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    """Five cases on two processes: the sampler gives one of them twice, and it must count once."""
    (tmp_path / "two.py").write_text(_TWO_PROCESSES.format(contract=str(Path(__file__))))
    subprocess.run([sys.executable, "two.py"], check=True, capture_output=True, cwd=tmp_path, timeout=300)
    together = msgspec.json.decode((tmp_path / "scores.json").read_bytes())
    assert together.keys() == TASKS.keys()
    for name, found in together.items():
        task = example(name)
        loader = DataLoader(Cases(task.needs, 5, VOLUME))
        alone = trainer(tmp_path).validate(module_for(task), loader, verbose=False)[0]
        assert found.keys() == alone.keys()
        assert found == pytest.approx(alone, rel=1e-5)


# Lightning starts the second process by running the script again.
_TWO_PROCESSES = """
import importlib.util
from pathlib import Path
import msgspec
spec = importlib.util.spec_from_file_location("contract", {contract!r})
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)
scores = dict()
for name in contract.TASKS:
    task = contract.example(name)
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
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
