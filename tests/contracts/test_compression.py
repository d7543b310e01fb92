"""Every compression of the registry keeps the contract of medfed.testing, a new file at once."""

from __future__ import annotations

import importlib

import pytest
import torch
from contract import checks_of, run

from medfed.registry import kinds
from medfed.testing import check_compression
from medfed.testing._compression import check_mean_of_rounds, delta, over_the_wire
from medfed.wire.compression import compress, decompress

torch.set_num_threads(1)

COMPRESSIONS = kinds("compression")


@checks_of(check_compression)
@pytest.mark.parametrize("name", sorted(COMPRESSIONS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_compression, check, COMPRESSIONS[name]())  # type: ignore[arg-type]


def test_three_stages_together_are_more_exact_on_average_than_once() -> None:
    check_mean_of_rounds([COMPRESSIONS[name]() for name in ("low_rank", "top_k", "int4")])  # type: ignore[misc]


def test_an_empty_stack_sends_every_bit() -> None:
    encoded, _ = compress([], delta(), {})
    received = decompress([], over_the_wire(encoded))
    assert all(torch.equal(received[name], tensor) for name, tensor in delta().items())


@pytest.mark.parametrize("name", sorted(COMPRESSIONS))
def test_its_file_cites_a_paper(name: str) -> None:
    assert "arXiv:" in (importlib.import_module(COMPRESSIONS[name].__module__).__doc__ or "")
