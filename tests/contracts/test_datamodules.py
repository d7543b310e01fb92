"""Every data module keeps the contract of medfed.testing, which finds what breaks it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import checks_of, run

from medfed.data.datamodules.arrays import Arrays
from medfed.registry import kinds
from medfed.testing import DataModuleExample, check_datamodule

COLUMNS = ("case", "patient", "image", "label", "target")


def write_arrays(folder: Path) -> None:
    """Write six cases of arrays (1, 6, 5, 4) with labels and targets, and cases.csv."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(6):
        image = random.normal(size=(1, 6, 5, 4)).astype(np.float32)
        np.save(folder / f"{number}.npy", image)
        np.save(folder / f"{number}-label.npy", (image > 0).astype(np.uint8))
        rows.append((f"c{number}", f"p{number}", f"{number}.npy", f"{number}-label.npy", number % 2))
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


EXAMPLES = {
    "arrays": [
        DataModuleExample(Arrays(), write_arrays, 6, "segment", 2),
        DataModuleExample(Arrays(), write_arrays, 6, "classify", 2),
    ]
}


def test_every_data_module_has_an_example() -> None:
    assert set(EXAMPLES) == set(kinds("datamodules"))


@checks_of(check_datamodule)
@pytest.mark.parametrize("number", [0, 1])
def test_it_keeps_the_contract(number: int, check: str) -> None:
    run(check_datamodule, check, EXAMPLES["arrays"][number])


class Restless(Arrays, frozen=True, tag="restless"):
    """Another image at each visit, of twice the channels that it says, and it prints."""

    def item(self, case, needs, random):
        print(case.id)
        image = super().item(case, needs, random)["image"]
        return {"image": torch.rand(2, *image.shape[1:]), "target": 0}


def test_the_contract_names_what_is_broken() -> None:
    example = DataModuleExample(Restless(), write_arrays, 5, "classify", 2)
    with pytest.raises(AssertionError, match="promises of a data module") as error:
        check_datamodule(example)
    assert {name for name in check_datamodule.checks if f"  {name}: " in str(error.value)} == {
        "it_lists_every_case_with_its_patient",
        "its_inputs_are_those_of_its_items",
        "a_whole_case_is_the_same_at_each_visit",
        "the_generator_that_is_handed_in_decides_alone",
        "what_a_caller_does_to_an_item_does_not_change_the_next",
        "it_prints_nothing",
    }
