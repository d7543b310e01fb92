"""Every privacy mechanism of the registry keeps the contract of medfed.testing, a new file at once.

A kind whose settings have no default gives some in `example`.
"""

from __future__ import annotations

import msgspec
import pytest
import torch
from contract import checks_of, run

from medfed.registry import kinds
from medfed.testing import check_privacy

torch.set_num_threads(1)

MECHANISMS = kinds("privacy")


@checks_of(check_privacy)
@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    if name == "ckks":
        pytest.importorskip("tenseal")
    record = MECHANISMS[name]
    run(check_privacy, check, msgspec.convert({"kind": name, **record.example}, record))  # type: ignore[attr-defined]
