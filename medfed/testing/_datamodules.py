"""The contract of a data module: cases with patients, and items that are what a task needs each time."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medfed.data.batch_needs import Needs
from medfed.data.datamodule import SiteDataModule
from medfed.data.datamodules import DataModule
from medfed.data.own_dataset import OwnDataset
from medfed.registry import Kind
from medfed.testing._contract import OF_EVERY_KIND, Contract

SECRET = b"a secret of a hospital for tests."


@dataclass(frozen=True)
class DataModuleExample:
    """A data module, a function that writes a small hospital's data into a folder, and what is expected.

    needs: what of `serves` the data hold.  cases: how many cases they are.  classes: those of the task, if it
    has any.
    """

    datamodule: DataModule
    write: Callable[[Path], Any]
    cases: int
    needs: Needs
    classes: int | None = None

    def __repr__(self) -> str:
        return repr(self.datamodule)


check_datamodule: Contract[DataModuleExample] = Contract("data module")


@contextmanager
def opened(example: DataModuleExample) -> Iterator[SiteDataModule]:
    with tempfile.TemporaryDirectory() as folder:
        example.write(Path(folder))
        yield SiteDataModule.open(
            folder, example.datamodule, example.needs, site_secret=SECRET, classes=example.classes
        )


def items(data: SiteDataModule, training: bool) -> list[dict[str, Any]]:
    dataset: Any = data.dataset("train", training=training)
    return [dataset[number] for number in range(len(dataset))]


def _of_kind(check: Callable[[Kind], None]) -> None:
    def of_example(example: DataModuleExample) -> None:
        check(example.datamodule)

    of_example.__name__ = check.__name__
    check_datamodule.check(of_example)


for _check in OF_EVERY_KIND:
    _of_kind(_check)


@check_datamodule.check
def it_lists_every_case_with_its_patient(example: DataModuleExample) -> None:
    with opened(example) as data:
        assert len(data.index.cases) == example.cases, f"found {len(data.index.cases)}"
        assert all(case.patient and case.id for case in data.index.cases)


@check_datamodule.check
def it_lists_the_same_cases_again(example: DataModuleExample) -> None:
    with tempfile.TemporaryDirectory() as folder:
        example.write(Path(folder))
        first = [case.id for case in example.datamodule.cases(Path(folder))]
        assert [case.id for case in example.datamodule.cases(Path(folder))] == first


@check_datamodule.check
def every_case_can_be_read_and_is_what_the_task_needs(example: DataModuleExample) -> None:
    with opened(example) as data:
        refused = [one.message for one in data.screen().refused]
        assert not refused, refused[0]
        assert items(data, training=True), "no case is in the training split"


@check_datamodule.check
def its_inputs_are_those_of_its_items(example: DataModuleExample) -> None:
    with opened(example) as data:
        for item in items(data, training=True):
            found = len(item["image"] if "image" in item else item["features"])
            assert found == example.datamodule.inputs, f"inputs is {example.datamodule.inputs}, found {found}"


@check_datamodule.check
def a_whole_case_is_the_same_at_each_visit(example: DataModuleExample) -> None:
    with opened(example) as data:
        _same(items(data, training=False), items(data, training=False))


@check_datamodule.check
def the_generator_that_is_handed_in_decides_alone(example: DataModuleExample) -> None:
    with opened(example) as data:
        state = torch.random.get_rng_state()
        _same(items(data, training=True), items(data, training=True))
        assert torch.equal(torch.random.get_rng_state(), state), "it draws from torch's global generator"


@check_datamodule.check
def what_a_caller_does_to_an_item_does_not_change_the_next(example: DataModuleExample) -> None:
    with opened(example) as data:
        first, spoilt = items(data, training=False), items(data, training=False)
        for item in spoilt:
            for value in item.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
        _same(items(data, training=False), first)


@check_datamodule.check
def to_predict_it_needs_no_answers(example: DataModuleExample) -> None:
    with opened(example) as data:
        cases = data.cases("train")
        dataset = OwnDataset(cases, example.datamodule, example.needs, training=False, answers=False)
        assert not {"label", "target"} & set(dataset.whole(cases[0]))


@check_datamodule.check
def it_prints_nothing(example: DataModuleExample) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), opened(example) as data:
        items(data, training=True)
    assert not printed.getvalue(), "what it prints may name a patient"


def _same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, f"'{key}' of a case differs between two visits"
