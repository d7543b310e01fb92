"""Rows of several processes, each case once, in the order of the processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from medfed.models.tasks import _gather
from medfed.models.tasks._gather import gather_rows

CPU = torch.device("cpu")


@pytest.fixture
def gathered(monkeypatch):
    """A function from each process's (rows, cases) to what each of them gets; threads stand for processes."""

    def run(*parts):
        own = threading.local()
        barrier = threading.Barrier(len(parts), timeout=20)
        given = [None] * len(parts)

        def all_gather(tensor, world, device):
            assert (world, device) == (len(parts), CPU)
            given[own.rank] = tensor
            barrier.wait()
            every = list(given)
            # As in torch, every process must give a tensor of the same shape and type.
            assert len({(one.shape, one.dtype) for one in every}) == 1
            barrier.wait()
            return every

        def of_rank(rank):
            own.rank = rank
            return gather_rows(*parts[rank], CPU)

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: len(parts))
        monkeypatch.setattr(_gather, "_all_gather", all_gather)
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(of_rank, range(len(parts))))

    return run


def rows(*values, width=2):
    return torch.tensor([[float(value)] * width for value in values]).reshape(len(values), width)


def test_a_process_alone_gets_its_rows_back_as_float64():
    given = torch.tensor([[0.1, 0.2]])
    returned = gather_rows(given, ["a"], CPU)
    assert returned.dtype == torch.float64
    assert torch.equal(returned, given.double())


def test_a_case_that_the_sampler_repeated_counts_once(gathered):
    """Five cases on two processes: the sampler gives the first one to both."""
    first, second = gathered((rows(1, 2, 3), ["a", "b", "c"]), (rows(4, 5, 1), ["d", "e", "a"]))
    assert torch.equal(first, rows(1, 2, 3, 4, 5).double())
    assert torch.equal(second, first)


def test_several_rows_of_one_case_in_one_process_are_kept(gathered):
    first, _ = gathered((rows(1, 2), ["a", "a"]), (rows(3), ["a"]))
    assert torch.equal(first, rows(1, 2).double())


def test_processes_may_have_different_numbers_of_cases_and_none_at_all(gathered):
    """A process without a case does not know how wide a row is."""
    results = gathered((torch.zeros(0, 0), []), (rows(1, 2), ["a", "b"]), (rows(3), ["c"]))
    for one in results:
        assert torch.equal(one, rows(1, 2, 3).double())


def test_no_case_anywhere_is_no_row(gathered):
    for one in gathered((torch.zeros(0, 2), []), (torch.zeros(0, 2), [])):
        assert one.shape == (0, 2)
