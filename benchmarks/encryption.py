"""Measure what CKKS encryption adds to a round, without training or a network.

    python benchmarks/encryption.py --millions 10 --sites 2

A site encrypts, the hub checks and adds, and a site decrypts. Times are CPU seconds of one thread. Sites run
on their own machines, so a round waits for one site's encryption, the hub's work for all sites, and one
site's decryption; the last line is this sum. NVFlare 2.9's CKKS takes 54 to 76 s per round at 10 million
parameters on a comparable machine.

Short, in seconds: `python benchmarks/encryption.py --millions 1`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from medfed.privacy import ckks
from medfed.wire import encoding as wire
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference

TENSOR = 1_000_000


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its CPU seconds."""
    began = time.process_time()
    found = call()
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=10, help="parameters of the model, in millions")
    parser.add_argument("--sites", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"layer{index:03d}": torch.randn(TENSOR, generator=generator) for index in range(chosen.millions)
    }
    local = {name: tensor + 1e-3 for name, tensor in weights.items()}
    privacy = ckks.Ckks()
    protector = ckks._Encryptor(privacy, ckks._new_key())
    update = Update("site0", 1, Difference(local, weights), 100)
    sent, encrypting = timed(lambda: protector.protect(update, weights))
    sent = wire.decode_update(wire.encode_update(sent), weights)
    size = sum(piece.numel() for piece in sent.groups[ckks.ENCRYPTED].values())
    _, checking = timed(lambda: privacy.admit(sent, weights))
    updates = [sent] * chosen.sites
    (_, state), adding = timed(lambda: privacy.prepare_merge(updates, {}, weights))
    received = GlobalModel(1, weights, groups=state)
    opened, decrypting = timed(lambda: ckks._decrypted(privacy, received, protector.key))
    worst = max(float((opened[name] - local[name]).abs().max()) for name in weights)
    hub = checking * chosen.sites + adding
    print(f"{chosen.millions} million parameters, {chosen.sites} sites, one thread")
    print("| what | CPU s |")
    print("|---|---|")
    print(f"| a site encrypts | {encrypting:.1f} |")
    print(f"| the hub checks and adds {chosen.sites} sites | {hub:.1f} |")
    print(f"| a site decrypts | {decrypting:.1f} |")
    print(f"| a round's longest path | {encrypting + hub + decrypting:.1f} |")
    print(f"\n{size / 1e6:.0f} MB up a site; largest error of a weight {worst:.1e}")


if __name__ == "__main__":
    main()
