"""Compare the cost of a round with secure aggregation and with the plain exchange of the same model.

    python benchmarks/secure_sum.py --millions 25 --sites 8
    python benchmarks/secure_sum.py --millions 1 --sites 6 --rounds 1  # short: seconds

Hub and sites are threads of one process that exchange real messages through a folder, with certificates. In a
round, every site checks, protects, encodes, hashes and writes its update; the hub reads, checks, sums
(unmasks) and merges. Times are CPU seconds of all parties together, because they share one machine's cores;
the download of the model is the same for all and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import threading
import time
from pathlib import Path

import torch

from medfed.aggregation.fedavg import FedAvg
from medfed.deployment.enrolment import enrol
from medfed.errors import ExchangeError
from medfed.exchange import DropOut
from medfed.exchange.folder import Folder
from medfed.federation.config import HubConfig
from medfed.federation.round import SiteConnection, aggregate_round, send_update
from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy.distributed_dp import DistributedDP
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel, Update, model_digest
from medfed.wire.weights import Difference

STUDY = "5e" * 32
TENSOR = 1_000_000
# Of the case with two sites that drop out, and that of distributed noise.
MIN_SITES = 6


def model(millions: int) -> dict[str, torch.Tensor]:
    """Return float32 tensors of a million values."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer{index:03d}": torch.randn(TENSOR, generator=generator) for index in range(millions)}


def credentials(folder: Path, sites: list[str]) -> None:
    """Enrol every site with the hub."""
    enrol.init(folder / "enrolment", "bench", ["127.0.0.1"])
    for site in sites:
        request, _ = enrol.request(folder / "credentials" / site, site)
        enrol.sign(folder / "enrolment", request, folder / f"{site}.kit")
        enrol.accept(folder / "credentials" / site, folder / f"{site}.kit")


def a_round(privacy: Privacy, weights, local, sites: list[str], gone: int) -> tuple[float, float, int]:
    """Return processor seconds, seconds and the bytes of one update of one round; `gone` sites
    stop before they send.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        credentials(folder, sites)

        def record(where: Path) -> Folder:
            return Folder(url=str(folder / "share"), credentials=str(where))

        hub = record(folder / "enrolment" / "hub").open_hub(STUDY, folder / "hub")
        sides = {
            site: record(folder / "credentials" / site).open_site(STUDY, site, folder / site)
            for site in sites
        }
        current = GlobalModel(0, weights, study_digest=STUDY)
        hub.publish(current)
        for site, side in sides.items():
            side.fetch(site, 0)
        received = model_digest(
            current
        )  # every site measures it when it receives a model, whatever its privacy
        for site in sites[:gone]:

            def stops(update: Update, site: str = site) -> None:
                sides[site].drop_out(site, DropOut.ERROR)
                raise SystemExit

            sides[site].send = stops

        def work(site: str) -> None:
            update = Update(site, 1, Difference(local, weights), 100 + len(site))
            with contextlib.suppress(ExchangeError):  # the hub closes when the round is measured
                connection = SiteConnection(site, sides[site], privacy, parties=tuple(sites))
                send_update(connection, update, weights, model_sha256=received)

        threads = [threading.Thread(target=work, args=(site,), daemon=True) for site in sites]
        cpu, began = time.process_time(), time.monotonic()
        for thread in threads:
            thread.start()
        config = HubConfig(1, tuple(sites), FedAvg(), privacy, minimum=2, outlier=None)
        outcome = aggregate_round(hub, config, {}, current, sites, AuditLog(None))
        cpu, passed = time.process_time() - cpu, time.monotonic() - began
        hub.close()
        for thread in threads:
            thread.join(10)
        for side in sides.values():
            side.close()
        return cpu, passed, max(answer.bytes_up for answer in outcome.results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=25, help="parameters of the model, in millions")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="of each the least is shown")
    chosen = parser.parse_args()
    if chosen.sites < MIN_SITES:
        parser.error(f"--sites {chosen.sites}: the cases need at least {MIN_SITES}")
    weights = model(chosen.millions)
    local = {name: tensor + 1e-3 for name, tensor in weights.items()}
    sites = [f"site{number}" for number in range(chosen.sites)]
    cases = [
        ("none", NoPrivacy(), 0),
        ("secure_sum, 32 bits", SecureSum(bits=32, limit=16, max_examples=1000), 0),
        ("secure_sum, 64 bits", SecureSum(), 0),
        ("secure_sum, 64 bits, 2 sites drop out", SecureSum(threshold=0.6), 2),
        ("distributed_dp, 32 bits", DistributedDP(noise_multiplier=1.0, min_sites=MIN_SITES), 0),
    ]
    print(
        f"{chosen.millions} million parameters, {chosen.sites} sites, torch with {torch.get_num_threads()} "
        "threads"
    )
    print("| privacy | CPU s per round | times plain | MB up per site |")
    print("|---|---|---|---|")
    plain = 0.0
    for name, privacy, gone in cases:
        found = [a_round(privacy, weights, local, sites, gone) for _ in range(chosen.rounds)]
        seconds = min(cpu for cpu, _, _ in found)
        plain = plain or seconds
        print(f"| {name} | {seconds:.1f} | {seconds / plain:.1f} | {found[0][2] / 1e6:.0f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\nPeak memory of all parties together: {peak:.1f} GB")


if __name__ == "__main__":
    main()
