"""Every local method of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
from contract import checks_of, run

from medfed.registry import kinds
from medfed.testing import check_local_method

torch.set_num_threads(1)
warnings.filterwarnings("ignore", module="pytorch_lightning")

METHODS = kinds("local_training")
SLOW = ("the_order_of_sites_changes_no_bit", "a_failed_run_resumes_to_the_same_bits")


@checks_of(check_local_method, slow=SLOW)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_local_method, check, METHODS[name]())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_its_file_cites_a_paper(name: str) -> None:
    assert "arXiv:" in (importlib.import_module(METHODS[name].__module__).__doc__ or "")
