"""Train a tiny study for hundreds of rounds and measure what grows in every process: memory, handles, files.

    python benchmarks/soak.py [--rounds 500] [--nats-rounds 200]
    python benchmarks/soak.py --short             # 40 and 20 rounds: three minutes, too few to judge a slope
    python benchmarks/soak.py --only memory --keep soak.jsonl

Two runs of the real commands, on tables of sample_data/: `medfed train` with 8 hospitals in one process, and
`medfed hub --broker` with two `medfed train --site` over NATS on loopback. While they train, each process and
its children are looked at once per round or second: memory that only it uses (USS), open handles, threads,
and the files and bytes of the run folders. The slope of memory is that of the least-squares line over the
rounds after the first fifth, in which caches and pools fill. Handles, threads and files are medians over the
last fifth of those rounds, less those over the first. `--keep` writes every look as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from comparison import Comparison, print_rows

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "sample_data" / "tabular"
HOSPITALS = ("north", "east", "south", "west")

# The most that a process may grow, in MB per 100 rounds.
MAX_SLOPE_MB = 1.0
# The share of rounds in which caches and pools fill, and the fewest rounds after it whose slope is judged.
WARM_UP, MIN_JUDGED = 0.2, 100
BROKER = "nats-server"

STUDY = """\
name: soak
seed: 1
task: {{kind: tabular, classes: [healthy, disease]}}
network: {{kind: fully_connected, hidden: [8]}}
data:
  kind: table
  target: disease
  features: [age, blood_pressure, cholesterol, heart_rate, st_depression, vessels]
train: {{rounds: {rounds}, epochs: 1, batch: 32, optimiser: {{kind: adam, lr: 0.001}}}}
evaluation: {{draws: 50, smallest_group: 1, pooled_model: false, local_models: false, robustness: false}}
"""


class Look(NamedTuple):
    """What a process, with its children, and its run folder hold at a round."""

    process: str
    round: int
    uss_mb: float
    handles: int
    threads: int
    files: int
    bytes: int


def children(pid: int) -> list[int]:
    """Return a process and all that it started, as far as they still run."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(place.parent.name))
    found, new = [pid], [pid]
    while new:
        new = [child for one in new for child in parents.get(one, [])]
        found += new
    return found


def is_broker(pid: int) -> bool:
    """Return whether a process is a nats-server."""
    return Path(f"/proc/{pid}/comm").read_text().strip() == "nats-server"


def look(process: str, pid: int, folder: Path, round: int) -> Look | None:
    """Return what the process and its children hold, the broker alone or all but it; None if it has ended."""
    uss = handles = threads = 0
    try:
        for one in children(pid):
            if is_broker(one) != (process == BROKER):
                continue
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            uss += sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))
            handles += len(os.listdir(f"/proc/{one}/fd"))
            threads += len(os.listdir(f"/proc/{one}/task"))
    except OSError:
        return None
    sizes = [os.lstat(os.path.join(here, name)).st_size for here, name in walk(folder)]
    return Look(process, round, uss / 1024, handles, threads, len(sizes), sum(sizes))


def walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of a folder that exist, each with its folder."""
    for here, _, names in os.walk(folder):
        yield from ((here, name) for name in names if os.path.lexists(os.path.join(here, name)))


def rounds_of(run: Path) -> int:
    """Return the last round of which every line is written; a round has one line per site."""
    path = run / "rounds.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    numbers = [json.loads(line)["round"] for line in lines[-1:] if line.endswith(b"\n")]
    return max(numbers, default=0)


def watch(
    processes: Mapping[str, tuple[int, Path]], run: Path, rounds: int, running: Callable[[], bool]
) -> list[Look]:
    """Look at each process, by name with its folder, whenever a round has ended, until the last has."""
    found: list[Look] = []
    seen = 0
    while running() and seen < rounds:
        time.sleep(0.2)
        now = rounds_of(run)
        if now <= seen:
            continue
        seen = now
        for name, (pid, folder) in processes.items():
            try:
                one = look(name, pid, folder, seen)
            except FileNotFoundError:  # a file was replaced between its listing and its look
                continue
            found += [one] if one is not None else []
    return found


def in_memory(folder: Path, rounds: int) -> list[Look]:
    """Run `medfed train` over eight hospitals of one process."""
    tables = [(f"{name}{part}", TABLES / f"{name}.csv") for name in HOSPITALS for part in (1, 2)]
    names = "".join(f"  {name}: {table}\n" for name, table in tables)
    study, run = folder / "study.yaml", folder / "run"
    study.write_text(STUDY.format(rounds=rounds) + f"sampling: {{minimum: 8}}\nsites:\n{names}")
    command = [sys.executable, "-m", "medfed.cli", "train", str(study), "--out", str(run)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            found = watch({"medfed train": (process.pid, run)}, run, rounds, lambda: process.poll() is None)
        finally:
            process.kill()
            process.wait()
    if rounds_of(run) < rounds:
        raise SystemExit(f"medfed train ended early:\n{(folder / 'log').read_text()[-3000:]}")
    return found


def over_nats(folder: Path, rounds: int) -> list[Look]:
    """Run a hub with its broker and two sites, each as a command of its own."""
    sys.path.insert(0, str(ROOT / "tests"))
    from commands import Across

    from medfed.study.canonical import study_digest
    from medfed.study.reading import read_study

    data = folder / "data"
    data.mkdir()
    for name in ("north", "south"):
        shutil.copy(TABLES / f"{name}.csv", data / name)
    across = Across(folder / "across", data, STUDY.format(rounds=rounds))
    for name in across.sites:
        site = across.folder / f"{name}.yaml"
        site.write_text(site.read_text().replace(f"data: {data / name}", f"data: {data / name}.csv"))
        (data / name).rename(data / f"{name}.csv")
    digest = study_digest(read_study(across.folder / "study.yaml"))
    try:
        across.start("hub")
        for name in across.sites:
            across.start(name, accept=digest)
        across.until(lambda: across.round(1), "the first round ended")
        places = {"hub": across.run, **{name: across.site_run(name) for name in across.sites}}
        alive = list(across.running.values())
        watched = {
            ("medfed hub" if name == "hub" else f"medfed train --site, {name}"): (pid, place)
            for name, place in places.items()
            if (pid := across.running[name].pid) is not None
        }
        watched[BROKER] = (watched["medfed hub"][0], across.enrolment)
        found = watch(watched, across.run, rounds, lambda: all(one.is_alive() for one in alive))
        if rounds_of(across.run) < rounds:
            raise SystemExit(f"the study ended early:\n{across.told()}")
        return found
    finally:
        across.end()


def growth(looks: list[Look], rounds: int) -> Iterator[Comparison]:
    """Yield what grows in each process after its warm-up."""
    for name in dict.fromkeys(one.process for one in looks):
        own = [one for one in looks if one.process == name and one.round >= WARM_UP * rounds]
        if len(own) < 3:
            continue
        slope = float(np.polyfit([one.round for one in own], [one.uss_mb for one in own], 1)[0]) * 100
        early, late = (own[: max(1, len(own) // 5)], own[-max(1, len(own) // 5) :])

        def more(what: str, early: list[Look] = early, late: list[Look] = late) -> int:
            before, after = (np.median([getattr(one, what) for one in part]) for part in (early, late))
            return round(float(after - before))

        first, last = own[0].round, own[-1].round
        kilobytes = (own[-1].bytes - own[0].bytes) / max(1, last - first) / 1000
        note = (
            f"{own[-1].uss_mb:.0f} MB at the end; {more('threads'):+d} threads, {more('files'):+d} files, "
            f"{kilobytes:.2f} kB of files per round"
        )
        judged = last - first >= MIN_JUDGED
        what = f"memory of {name}, rounds {first} to {last}"
        yield Comparison(what, slope, "MB per 100 rounds", bar=MAX_SLOPE_MB if judged else None, note=note)
        yield Comparison(f"open handles of {name}", more("handles"), "more", bar=0)


RUNS = {"memory": (in_memory, 500, 40), "nats": (over_nats, 200, 20)}


def compare(
    short: bool, only: tuple[str, ...] = tuple(RUNS), lengths: Mapping[str, int] | None = None, keep: str = ""
) -> Iterator[Comparison]:
    """Yield the rows of the table of `make bench`."""
    for name in only:
        run, full, few = RUNS[name]
        rounds = (lengths or {}).get(name) or (few if short else full)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            looks = run(Path(folder), rounds)
        if keep:
            with open(keep, "a") as file:
                file.writelines(json.dumps(one._asdict()) + "\n" for one in looks)
        yield from growth(looks, rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=0, help="of the run in memory, by default 500")
    parser.add_argument("--nats-rounds", type=int, default=0, help="of the run over nats, by default 200")
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--keep", default="", metavar="FILE", help="write every look there, as JSON")
    parser.add_argument("--short", action="store_true", help="40 and 20 rounds")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started
    lengths = {"memory": given.rounds, "nats": given.nats_rounds}
    print_rows(compare(given.short, (given.only,) if given.only else tuple(RUNS), lengths, given.keep))


if __name__ == "__main__":
    main()
