"""Mutated files: each gives a volume or our own error, within time and memory, and no content is quoted.

By hand, 10,000 files: `python tests/fuzz.py --count 10000`. The cases run in a process of their
own, so that a crash in a decoder is seen, named and counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import hard_series as hs
import nibabel as nib
from pydicom import uid

LIMIT_S = 20.0
LIMIT_KB = 1_500_000


def valid_files(folder: Path) -> list[Path]:
    """Write one valid file of each kind."""
    from dicom_encodings import SYNTAXES, encode

    series = hs.Series(shape=(3, 40, 36), intercept=500.0)
    paths = []
    for i, syntax in enumerate(SYNTAXES):
        ds = hs.make_slice(series, 0)
        encode(ds, syntax)
        paths.append(hs.write(ds, folder / f"classic{i}.dcm"))
    mr = hs.Series(shape=(3, 40, 36), modality="MR")
    for syntax in (uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless):
        ds = hs.enhanced(mr, [{"k": k, "echo": 3} for k in (1, 0, 2)])
        if syntax != uid.ExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        paths.append(hs.write(ds, folder / f"enhanced{len(paths)}.dcm"))
    mask = np.ones((40, 36), bool)
    paths.append(hs.write(hs.segmentation(series, [(1, 0, mask), (1, 1, mask)]), folder / "seg.dcm"))
    square = [(1.5, 1.5), (9.5, 1.5), (9.5, 9.5), (1.5, 9.5)]
    paths.append(hs.write(hs.structure_set(series, {1: [(0, square)]}), folder / "rt.dcm"))
    voxels = np.random.default_rng(0).integers(0, 9, (9, 8, 7)).astype(np.int16)
    for name, kind in (
        ("a.nii", nib.Nifti1Image),
        ("b.nii.gz", nib.Nifti1Image),
        ("c.nii.gz", nib.Nifti2Image),
    ):
        kind(voxels, np.eye(4)).to_filename(folder / name)
        paths.append(folder / name)
    return paths


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return data with some random damage, as happens to files."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            break
        # Headers come first and decide most.
        reach = len(out) if rng.random() < 0.4 else min(len(out), 1500)
        at = int(rng.integers(0, reach))
        what = rng.integers(0, 8)
        if what == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif what == 1:
            out[at] = int(rng.integers(0, 256))
        elif what == 2:
            del out[at:]
        elif what == 3:
            del out[at : at + int(rng.integers(1, 40))]
        elif what == 4:
            out[at:at] = rng.bytes(int(rng.integers(1, 40)))
        elif what == 5:
            out[at : at + 4] = b"\xff\xff\xff\xff"
        elif what == 6:
            size = int(rng.integers(1, 60))
            out[at : at + size] = bytes(size)
        else:
            size = int(rng.integers(1, 200))
            out[at:at] = out[at : at + size]
    return bytes(out)


def check(path: Path, like) -> str:
    """Read one file as an image and as a label; return 'volume', 'refused', or the fault."""
    from medfed.data.read import read, read_label
    from medfed.errors import ImageError

    outcome = "refused"
    for work in (lambda: read(path), lambda: read_label(path, like)):
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                work()
                outcome = "volume"
            except ImageError as refusal:
                if "CANARY" in str(refusal) or str(path) in str(refusal):
                    return f"an error that quotes: {refusal}"
                if "RecursionError" in str(refusal):
                    return f"a cause not foreseen: {refusal}"
            except BaseException as error:
                return f"{type(error).__name__}: {error}"
        if caught:
            return f"a warning: {caught[0].message}"
        took = time.monotonic() - began
        if took > LIMIT_S:
            return f"took {took:.1f} s"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > max(LIMIT_KB, before):
            return "more than 1.5 GB of memory"
    return outcome


def _work(first: int, last: int, seed: int, folder: str, results) -> None:
    from medfed.data.read import read

    base = Path(folder)
    sources = [(path.name, path.read_bytes()) for path in sorted(base.glob("*.*")) if path.name != "case"]
    like = read(base / "classic0.dcm")[0]
    target = base / f"case-{os.getpid()}"
    for number in range(first, last):
        rng = np.random.default_rng((seed, number))
        name, data = sources[number % len(sources)]
        target.write_bytes(mutate(data, rng))
        results.send((number, name, "began"))
        results.send((number, name, check(target, like)))
    target.unlink()
    results.send((last, "", "done"))


def fuzz(count: int, seed: int, folder: Path, first: int = 0) -> tuple[dict[str, int], list[str]]:
    """Return the number of cases per outcome, and a line for each fault."""
    valid_files(folder)
    tally: dict[str, int] = {}
    wrong: list[str] = []
    context = multiprocessing.get_context("spawn")
    last = first + count
    while first < last:
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(first, last, seed, str(folder), there))
        worker.start()
        there.close()
        number, name, outcome = first, "", "began"
        while outcome != "done":
            if not here.poll(LIMIT_S * 3):
                worker.kill()
                wrong.append(f"{name} {number}: hangs")
                break
            try:
                number, name, outcome = here.recv()
            except EOFError:
                worker.join()
                wrong.append(f"{name} {number}: crashed, exit code {worker.exitcode}")
                break
            if outcome in ("volume", "refused"):
                tally[outcome] = tally.get(outcome, 0) + 1
            elif outcome not in ("began", "done"):
                wrong.append(f"{name} {number}: {outcome}")
        worker.join()
        first = number + 1
    return tally, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        tally, wrong = fuzz(given.count, given.seed, Path(folder), given.first)
        print(f"{given.count} files in {time.monotonic() - began:.0f} s: {tally}")
        print("\n".join(wrong) or "none was wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
