"""The sorting network sorts every row."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from medfed.aggregation._sorting import network, sorted_rows

torch.set_num_threads(1)


@pytest.mark.parametrize("size", range(1, 12))
def test_the_network_sorts(size: int) -> None:
    # A network sorts everything if it sorts all rows of zeros and ones (Knuth 3, 5.3.4, the 0-1 principle).
    columns = torch.tensor(list(product([0.0, 1.0], repeat=size))).T.contiguous()
    ordered = torch.stack(sorted_rows(columns.clone()))
    assert torch.equal(ordered, columns.sort(0).values)
    assert all(low < high for low, high in network(size))
