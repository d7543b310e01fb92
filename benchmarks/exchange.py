"""Measure the cost of a round without training, with real processes, TLS, and a real broker or folder.

    python benchmarks/exchange.py --exchange nats --megabytes 40 --sites 2 --rounds 5
    python benchmarks/exchange.py --short  # nats and folder at 4 MB, as rows of `make bench`: half a minute

Prints the seconds of each round as measured by the hub (publish the model, wait until every site has fetched
it and sent an update of the same size, check and merge the updates, write a checkpoint), the CPU seconds of
all parties together per round, their peak memory, and the largest size of the broker's store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison import Comparison, in_a_process, print_rows

STUDY = "be" * 32
TENSOR = 1_000_000
# The most seconds that a round of 400 MB over nats should take.
MAX_NATS_400_S = 5.0


def model(megabytes: float, seed: int) -> dict[str, Any]:
    """Return float32 tensors of a million elements each, `megabytes` (10^6 bytes) in all."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(megabytes * 1e6 / 4 / TENSOR))
    return {f"layer{index:04d}.weight": torch.randn(TENSOR, generator=generator) for index in range(count)}


def peak_mb(pid: int | str = "self") -> float:
    """Return the peak resident memory of a process in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return 0.0


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def hub(given: dict[str, Any]) -> None:
    """Run the hub and record the seconds of each round."""
    from medfed.aggregation.fedavg import FedAvg
    from medfed.federation.config import HubConfig
    from medfed.federation.hub import run_hub

    folder = Path(given["folder"])
    exchange = opened(given).open_hub(STUDY, folder)
    plan = HubConfig(
        given["rounds"], tuple(given["sites"]), FedAvg(), minimum=len(given["sites"]), study_digest=STUDY
    )
    rows: list[dict[str, Any]] = []
    before, began = peak_mb(), time.process_time()

    def watch(report: Any) -> None:
        rows.append({"round": report.round, "seconds": report.seconds, "down": report.bytes_down})

    run_hub(plan, exchange, model(given["megabytes"], 0), folder=folder / "models", on_round=watch)
    (folder / "result").write_text(
        json.dumps(
            {"rows": rows, "peak_mb": peak_mb(), "before_mb": before, "cpu_s": time.process_time() - began}
        )
    )


def site(given: dict[str, Any]) -> None:
    """Run a site that sends the same weights every round in place of trained ones."""
    from medfed.federation.round import SiteConnection, receive, send_update
    from medfed.wire.update import Update
    from medfed.wire.weights import Difference

    folder, name = Path(given["folder"]), given["site"]
    local = model(given["megabytes"], 1)
    exchange = opened(given).open_site(STUDY, name, folder)
    channel, number = SiteConnection(name, exchange), 0
    before, began = peak_mb(), time.process_time()
    while True:
        received = receive(channel, number)
        number = received.round + 1
        if received.final:
            break
        update = Update(name, number, Difference(local, received.weights), 10)
        send_update(channel, update, received.weights, model_sha256=received.sha256)
    exchange.send(Update(name, number, {}, 0, {"val/dice": 0.5}))
    (folder / "result").write_text(
        json.dumps({"peak_mb": peak_mb(), "before_mb": before, "cpu_s": time.process_time() - began})
    )


def opened(given: dict[str, Any]) -> Any:
    """Return the exchange's settings, as read from a study file."""
    import msgspec

    from medfed.registry import union

    return msgspec.convert(given["exchange"], union("exchange"))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one federation of processes and return the measurements."""
    from medfed.deployment.enrolment import enrol
    from medfed.deployment.enrolment.broker import Broker

    sites = [f"site{index}" for index in range(arguments.sites)]
    authority, port, websocket_port = folder / "enrolment", *free_ports(2)
    enrol.init(authority, "bench", ["127.0.0.1"], port, websocket_port, listen="127.0.0.1")
    credentials = {"hub": authority / "hub"}
    for name in sites:
        credentials[name] = folder / "credentials" / name
        request, _ = enrol.request(credentials[name], name)
        enrol.sign(authority, request, folder / "kit")
        enrol.accept(credentials[name], folder / "kit")
    url = f"wss://127.0.0.1:{websocket_port}" if arguments.exchange == "wss" else f"tls://127.0.0.1:{port}"
    broker = None if arguments.exchange == "folder" else Broker(authority)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    most = 0
    try:
        for name in ["hub", *sites]:
            here = folder / name
            here.mkdir()
            if broker is None:
                how = {"kind": "folder", "url": str(folder / "share"), "credentials": str(credentials[name])}
            else:
                how = {"kind": "nats", "urls": [url], "credentials": str(credentials[name])}
            given = {
                "exchange": how,
                "folder": str(here),
                "sites": sites,
                "site": name,
                "rounds": arguments.rounds,
                "megabytes": arguments.megabytes,
            }
            (here / "given.json").write_text(json.dumps(given))
            kind = "hub" if name == "hub" else "site"
            processes[name] = subprocess.Popen(
                [sys.executable, __file__, "--party", kind, str(here / "given.json")],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        end = time.monotonic() + arguments.patience
        while any(process.poll() is None for process in processes.values()) and time.monotonic() < end:
            stored = authority / "broker" / "store" if broker else folder / "share"
            most = max(most, size_of(stored))
            time.sleep(0.5)
        broker_mb, broker_cpu_s = (peak_mb(broker.pid), cpu_s(broker.pid)) if broker else (0.0, 0.0)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        if broker:
            broker.stop()
    found = {name: json.loads((folder / name / "result").read_text()) for name in processes}
    seconds = [row["seconds"] for row in found["hub"]["rows"]]
    # Omit the first round, in which parties still start, and the last, which is the sites' reports; of
    # a short run, take the first.
    between = seconds[1:-1] or seconds[:1]
    return {
        "exchange": arguments.exchange,
        "megabytes": arguments.megabytes,
        "sites": arguments.sites,
        "first_s": round(seconds[0], 2),
        "rounds_s": [round(value, 2) for value in between],
        "median_s": round(statistics.median(between), 2),
        "cpu_s_a_round": round(
            (sum(one["cpu_s"] for one in found.values()) + broker_cpu_s) / len(seconds), 2
        ),
        "of_it_hub_site_broker": [
            round(value / len(seconds), 2)
            for value in (found["hub"]["cpu_s"], found[sites[0]]["cpu_s"], broker_cpu_s)
        ],
        "hub_mb": round(found["hub"]["peak_mb"]),
        "hub_before_mb": round(found["hub"]["before_mb"]),
        "site_mb": round(max(found[name]["peak_mb"] for name in sites)),
        "site_before_mb": round(max(found[name]["before_mb"] for name in sites)),
        "broker_mb": round(broker_mb),
        "stored_mb": round(most / 1e6),
    }


def compare(short: bool) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`: a round over nats and over a folder, by model size."""
    for megabytes in (4,) if short else (40, 400):
        for kind in ("nats", "folder"):
            words = ["--exchange", kind, "--megabytes", str(megabytes), "--rounds", "4"]
            found = in_a_process(__file__, *words)
            hub, site, broker = found["of_it_hub_site_broker"]
            note = (
                f"CPU s per round: hub {hub:g}, one site {site:g}, broker {broker:g}; peak memory hub "
                f"{found['hub_mb']} MB ({found['hub_before_mb']} before), site {found['site_mb']} MB"
            )
            bar = MAX_NATS_400_S if (kind, megabytes) == ("nats", 400) else None
            yield Comparison(
                f"round, {kind}, {megabytes} MB, 2 sites", found["median_s"], "s", "", None, bar, note
            )


def size_of(folder: Path) -> int:
    """Return the total size of a folder's files, skipping those deleted while counting."""
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(here, name)).st_size
            except OSError:
                continue
    return total


def free_ports(number: int) -> list[int]:
    """Return free loopback ports."""
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> None:
    """Run the measurement and print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchange", choices=["nats", "wss", "folder"], default="nats")
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=600)
    parser.add_argument("--folder", help="where to write; a temporary folder by default")
    parser.add_argument("--short", action="store_true", help="nats and folder at 4 MB, as a table")
    parser.add_argument("--party", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.party:
        import logging

        import torch

        torch.set_num_threads(1)
        logging.basicConfig(level=logging.WARNING)
        {"hub": hub, "site": site}[arguments.party[0]](json.loads(Path(arguments.party[1]).read_text()))
        return
    if arguments.short:
        print_rows(compare(short=True))
        return
    folder = Path(tempfile.mkdtemp(prefix="medfed-exchange-", dir=arguments.folder))
    try:
        sys.stdout.write(json.dumps(measure(arguments, folder)) + "\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
