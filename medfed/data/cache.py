"""Where prepared volumes are kept between epochs: nowhere, in memory, or on the site's disk.

On disk an entry is a folder with the image (float16 where that is exact enough), the label (uint8) and the
labelled voxels that patches may be centred on, each mapped into memory, so that a patch costs the pages it
lies on and not the volume. An entry's name is the digest of what the files hold, how they are prepared and
with which
versions: a corrected image, another spacing or a new release makes a new entry, and none goes stale. It is
written beside and then renamed, so that two processes can share a cache and a half-written entry is never
read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.data.cache_location import files_below, is_hex, is_site_folder, private_folder
from medfed.data.case import Case
from medfed.data.settings import Images
from medfed.data.transforms import Needs, Prepared
from medfed.errors import DataError

# Raised when an entry's form or the meaning of `prepare` changes.
FORM = 2

# float16 has 11 bits: values up to 16 are kept to 0.004, finer than any noise of a normalised image. Larger
# values, such as Hounsfield units, stay float32.
MAX_FLOAT16 = 16.0

# How a file is named in an entry, in the order in which they are written; `about.json` last.
PARTS = ("image", "label", "centres")
# How the name of an entry begins while it is being written.
UNFINISHED = "unfinished-"


class NoCache:
    """Keeps nothing: every case is prepared each time it is asked for."""

    def get(self, case: Case, make: Callable[[], Prepared]) -> Prepared:
        """Return a prepared case, made by `make` where it is not kept."""
        return make()


class MemoryCache(NoCache):
    """Keeps every prepared case in this process's memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Prepared] = {}

    def get(self, case: Case, make: Callable[[], Prepared]) -> Prepared:
        if case.token not in self._kept:
            self._kept[case.token] = make()
        return self._kept[case.token]


@dataclass(eq=False)
class DiskCache(NoCache):
    """Keeps every prepared case below `folder`, which only the site's own account can read.

    `recipe` says how cases are prepared; it is part of every entry's name.
    """

    folder: Path
    recipe: str
    _open: dict[str, Prepared] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself; pickling a mapped array would copy the volume.
        return {"folder": self.folder, "recipe": self.recipe, "_open": {}}

    def get(self, case: Case, make: Callable[[], Prepared]) -> Prepared:
        # The files are digested once a process: a hospital that edits an image during a run gets the new one
        # in the next.
        if case.token not in self._open:
            entry = self.folder / entry_name(case, self.recipe)
            found = load(entry)
            if found is None:
                made = make()
                try:
                    save(entry, made)
                except OSError as error:  # whose own words name the path
                    raise DataError(
                        f"case {case.token}: its prepared image can't be kept on disk ({error.strerror}); make room, "
                        "name another folder as `cache` in the site file or in MEDFED_CACHE, or set data.cache to "
                        "'memory'"
                    ) from None
                found = load(entry)
                if found is None:
                    raise DataError(
                        f"case {case.token}: its cache entry cannot be read back; is the cache's disk full?"
                    )
            self._open[case.token] = found
        return self._open[case.token]


def open_cache(
    settings: Images, folder: Path | None = None, needs: Needs = "segment", classes: int | None = None
) -> NoCache:
    """Return the store that the settings name.

    Raises:
        DataError: where it is on disk and the caller has no folder for it.
    """
    if settings.cache == "memory":
        return MemoryCache()
    if settings.cache == "none":
        return NoCache()
    if folder is None:
        raise DataError(
            "data.cache is 'disk' and there is no cache folder here; set one in the site file, or use "
            "'memory'"
        )
    return DiskCache(Path(folder), preparation_recipe(settings, needs, classes))


def preparation_recipe(settings: Images, needs: Needs, classes: int | None) -> str:
    """Return what an entry depends on beside its files, as text: settings that shape it, and versions."""
    import monai
    import torch

    shaping = {
        name: getattr(settings, name) for name in ("spacing_mm", "orientation", "normalise", "channels")
    }
    versions = [str(x) for x in (FORM, monai.__version__, torch.__version__, np.__version__)]
    return msgspec.json.encode([shaping, needs == "segment", classes, versions], order="sorted").decode()


def entry_name(case: Case, recipe: str) -> str:
    """Return the SHA-256 of a case's files and the recipe, in hex."""
    sha = hashlib.sha256(recipe.encode())
    for part in (*case.image, case.label):
        sha.update(b"\0part")
        if part is None:
            continue
        for path in files_below(part) if part.is_dir() else [part]:
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def save(entry: Path, prepared: Prepared) -> None:
    """Write an entry; whoever is first wins, as both wrote the same."""
    private_folder(entry.parent)
    # mkdtemp gives 0700. The name's ending keeps `load` from taking it for an entry.
    unfinished = Path(tempfile.mkdtemp(dir=entry.parent, prefix=UNFINISHED, suffix=".part"))
    try:
        half = float(np.abs(prepared.image).max(initial=0)) <= MAX_FLOAT16
        arrays = {
            "image": prepared.image.astype(np.float16 if half else np.float32),
            "label": prepared.label,
            "centres": prepared.centres,
        }
        about: dict[str, Any] = {
            "affine_ras": prepared.affine_ras.tolist(),
            "original_shape": prepared.original_shape,
            "original_affine_ras": prepared.original_affine_ras.tolist(),
            "arrays": {},
        }
        for name, array in arrays.items():
            if array is not None:
                _write(unfinished / name, np.ascontiguousarray(array).tobytes())
                about["arrays"][name] = {"dtype": array.dtype.str, "shape": array.shape}
        _write(unfinished / "about.json", json.dumps(about).encode())
        try:
            os.rename(unfinished, entry)
        except OSError:
            if load(entry) is not None:
                return
            # What is there is damaged: move it away under a name nobody reads, then take its place.
            damaged = unfinished.with_suffix(".damaged.part")
            os.rename(entry, damaged)
            os.rename(unfinished, entry)
            shutil.rmtree(damaged, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # Without it a power cut can leave a renamed entry of the right size that holds zeros.
        os.fsync(file.fileno())


def load(entry: Path) -> Prepared | None:
    """Return an entry with its arrays mapped, not read; None where there is none or it is damaged."""
    try:
        about = json.loads((entry / "about.json").read_bytes())
        arrays: dict[str, NDArray] = {}
        for name in PARTS:
            described = about["arrays"].get(name)
            if described is not None:
                arrays[name] = _mapped(entry / name, np.dtype(described["dtype"]), tuple(described["shape"]))
        x, y, z = about["original_shape"]
        return Prepared(
            image=arrays["image"],
            label=arrays.get("label"),
            centres=arrays["centres"],
            affine_ras=np.array(about["affine_ras"]),
            original_shape=(x, y, z),
            original_affine_ras=np.array(about["original_affine_ras"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
    expected = dtype.itemsize * int(np.prod(shape))
    if path.stat().st_size != expected:
        raise ValueError("an array's file has another size than its shape")
    if expected == 0:  # nothing can be mapped from an empty file
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def purge(folder: str | Path) -> int:
    """Delete every entry in a cache folder, and in sites' own folders in it; return how many there were.

    All else stays: a data folder may be named by mistake, and hold patients' folders with
    names like an entry's.
    """
    folder = Path(folder)
    found = 0
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.is_dir() or path.is_symlink():
                continue
            if is_site_folder(path.name):
                found += purge(path)
            elif _holds_only_parts(path) and (is_hex(path.name, 64) or path.name.startswith(UNFINISHED)):
                shutil.rmtree(path)
                found += is_hex(path.name, 64)
    return found


def _holds_only_parts(path: Path) -> bool:
    return {one.name for one in path.iterdir()} <= {*PARTS, "about.json"}


def in_memory(prepared: Prepared) -> Prepared:
    """Return a prepared case whose arrays are read into memory, the image as float32."""
    label = None if prepared.label is None else np.array(prepared.label)
    return replace(
        prepared, image=np.array(prepared.image, np.float32), label=label, centres=np.array(prepared.centres)
    )
