"""Every loss of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import pytest
import torch
from contract import checks_of, run

from medfed.registry import kinds
from medfed.testing import check_loss

torch.set_num_threads(1)


@checks_of(check_loss)
@pytest.mark.parametrize("name", sorted(kinds("losses")))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_loss, check, kinds("losses")[name]())  # type: ignore[arg-type]
