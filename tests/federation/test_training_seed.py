"""What training draws by chance: from the study's seed, or under a sum from a secret that never repeats."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset

from medfed.data.samplers import FixedStepBatchSampler
from medfed.exchange import MemoryExchange
from medfed.federation.callback import FederatedCallback
from medfed.federation.training_seed import _seed_order, derived_seed, training_seed
from medfed.privacy import NoPrivacy
from medfed.privacy.ckks import Ckks
from medfed.privacy.distributed_dp import DistributedDP
from medfed.privacy.dp_sgd import DPSGD
from medfed.privacy.secure_sum import SecureSum

ROWS = TensorDataset(torch.arange(40.0))


def test_the_studys_seed_is_kept_where_the_hub_sees_each_update():
    assert training_seed(3, NoPrivacy()) == 3
    # Private training draws from the operating system itself.
    assert training_seed(None, DPSGD()) is None


def test_under_a_sum_each_run_has_256_secret_bits_whatever_the_seed():
    for privacy in (SecureSum(), Ckks(), DistributedDP(epsilon=8)):
        first, second = training_seed(3, privacy), training_seed(3, privacy)
        assert first != second
        assert len(bytes.fromhex(str(first))) == 32
        assert isinstance(training_seed(None, privacy), str)


def test_a_seed_of_an_epoch_is_the_first_32_bits_of_pythons_generator():
    import random

    assert derived_seed("ab", "north", 2) == random.Random("ab/north/2").getrandbits(32)
    assert derived_seed(7, "north") == random.Random("7/north").getrandbits(32)


def test_a_checkpoint_keeps_the_secret_and_holds_none_without_a_sum():
    def callback(privacy):
        return FederatedCallback("north", MemoryExchange(), 1, privacy=privacy, seed=3)

    former, anew = callback(SecureSum()), callback(SecureSum())
    assert former.secret_seed != anew.secret_seed
    anew.load_state_dict(former.state_dict())
    assert anew.secret_seed == former.secret_seed
    plain = callback(NoPrivacy())
    assert plain.secret_seed is None
    assert "seed" not in plain.state_dict()


def order(batches) -> list[int]:
    return [number for batch in batches for number in batch]


def test_samplers_with_a_seed_of_their_own_take_one_of_the_run():
    steps = FixedStepBatchSampler(40, 4, 10, "3/token")
    before = order(steps)
    _seed_order(DataLoader(ROWS, batch_sampler=steps), 1, 2)
    assert order(steps) != before
    assert sorted(order(steps)) == list(range(40))
    # The same in every epoch: a pass over the cases goes on from one epoch to the next.
    assert steps.seed == 2
    ranks = DistributedSampler(ROWS, 2, 0, shuffle=True)
    before = list(ranks)
    _seed_order(DataLoader(ROWS, 4, sampler=ranks), 1, 2)
    assert list(ranks) != before


def test_a_loaders_own_generator_takes_the_epochs_seed():
    own = torch.Generator().manual_seed(0)
    loader = DataLoader(ROWS, 4, sampler=RandomSampler(ROWS, generator=own))
    _seed_order(loader, 11, 2)
    expected = torch.Generator().manual_seed(11)
    assert list(loader.sampler) == list(RandomSampler(ROWS, generator=expected))
