"""Every optimiser of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import pytest
import torch
from contract import checks_of, run

from medfed.registry import kinds
from medfed.testing import check_optimiser

torch.set_num_threads(1)


@checks_of(check_optimiser)
@pytest.mark.parametrize("name", sorted(kinds("optimisers")))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_optimiser, check, kinds("optimisers")[name]())  # type: ignore[arg-type]
