"""Caches of prepared volumes between epochs: none, in memory, or on the site's disk.

On disk an entry is a folder with the image (float16 if that is exact enough), the label (uint8) and the
labelled voxels that patches may be centred on. Each is mapped into memory, so that reading a patch costs its
pages and not the volume. An entry's name is the digest of the files' content, the preparation and the
versions: a corrected image, another spacing or a new release makes a new entry, and no entry goes stale. An
entry is written under a temporary name and then renamed, so that two processes can share a cache and never
read a half-written entry.
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
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.data.batch_needs import Needs
from medfed.data.cache_location import is_hex, is_site_folder
from medfed.data.case import Case, Echo, ImageSource, paths_of
from medfed.data.class_names import Classes
from medfed.data.settings import Images
from medfed.data.transforms import Prepared
from medfed.data.volume_files import files_read
from medfed.errors import DataError, ImageError
from medfed.files import private_folder
from medfed.registry import package_of

# Increased when the format of entries or the meaning of `prepare` changes.
FORMAT_VERSION = 3

# float16 has 11 bits: it stores values up to 16 to 0.004, finer than the noise of any normalised image.
# Larger values, such as Hounsfield units, stay float32.
MAX_FLOAT16 = 16.0

# The files of an entry, in the order in which they are written; `about.json` is the last.
PARTS = ("image", "label", "centres")
# The prefix of an entry that is being written.
UNFINISHED = "unfinished-"


class NoCache:
    """Keeps nothing: a case is prepared at each access."""

    # Whether a prepared case may be given out again, so that nobody may change it.
    keeps: ClassVar[bool] = False

    def get(self, case: Case, make: Callable[[], Prepared]) -> Prepared:
        """Return a prepared case; `make` prepares it if the cache does not hold it."""
        return make()


class MemoryCache(NoCache):
    """Keeps every prepared case in this process's memory."""

    keeps: ClassVar[bool] = True

    def __init__(self) -> None:
        self._prepared: dict[str, Prepared] = {}

    def get(self, case: Case, make: Callable[[], Prepared]) -> Prepared:
        if case.token not in self._prepared:
            self._prepared[case.token] = make()
        return self._prepared[case.token]


@dataclass(eq=False)
class DiskCache(NoCache):
    """Keeps every prepared case below `folder`, which only the site's own account can read.

    `recipe` describes the preparation; it is part of every entry's name.
    """

    keeps: ClassVar[bool] = True

    folder: Path
    recipe: str
    _open: dict[str, Prepared] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files itself; pickling a mapped array would copy the volume.
        return {"folder": self.folder, "recipe": self.recipe, "_open": {}}

    def get(self, case: Case, make: Callable[[], Prepared]) -> Prepared:
        # Each process digests the files once: an image that is edited during a run is used from the
        # next run on.
        if case.token not in self._open:
            entry = self.folder / entry_name(case, self.recipe)
            prepared = load(entry)
            if prepared is None:
                try:
                    save(entry, make())
                except OSError as error:  # its own message names the path
                    raise DataError(
                        f"case {case.token}: its prepared image can't be kept on disk ({error.strerror}); "
                        "make room, name another folder as `cache` in the site file or in MEDFED_CACHE, or "
                        "set data.cache to 'memory'"
                    ) from None
                prepared = load(entry)
                if prepared is None:
                    raise DataError(
                        f"case {case.token}: its cache entry cannot be read back; is the cache's disk full?"
                    )
            self._open[case.token] = prepared
        return self._open[case.token]


def open_cache(
    settings: Images, folder: Path | None = None, needs: Needs = "segment", classes: Classes = None
) -> NoCache:
    """Return the cache that the settings name.

    Raises:
        DataError: if it is on disk and the caller has no folder for it.
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


def preparation_recipe(settings: Images, needs: Needs, classes: Classes) -> str:
    """Return what an entry depends on apart from its files, as text: settings and versions."""
    import monai
    import torch

    names = ["spatial_dims", "slices", "spacing_mm", "orientation", "normalise", "channels"]
    names += ["read", "resample_labels", "resample_channels"]
    shaping = {name: getattr(settings, name) for name in names}
    if settings.spacing_mm == "fit":
        shaping["patch"] = settings.patch
    preparing = [one for one in settings.transforms if one.prepares]
    # Code that is not medfed's may change under the same settings; a plug-in's module has its digest.
    code = [package_of(one) or type(one).__module__ for one in (settings.normalise, *preparing)]
    if preparing or not code[0].startswith("medfed."):
        shaping |= {"transforms": preparing, "code": code}
    versions = [str(x) for x in (FORMAT_VERSION, monai.__version__, torch.__version__, np.__version__)]
    # Numbers that dataset.json names are keys, which JSON has as texts only.
    plain = msgspec.to_builtins([shaping, needs == "segment", classes, versions], str_keys=True)
    return msgspec.json.encode(plain, order="sorted").decode()


def entry_name(case: Case, recipe: str) -> str:
    """Return the SHA-256 of the recipe and of exactly the files that reading the case opens, in hex.

    Raises:
        ImageError: naming the case by token, if a file is missing or may not be read, or there is none.
    """
    sha = hashlib.sha256(recipe.encode())
    for name, _ in case.masks:
        sha.update(b"\0mask" + name.encode("utf-8", "surrogateescape"))
    for source in (*case.image, case.label, *(path for _, path in case.masks)):
        sha.update(b"\0part")
        if source is not None:
            _digest_files(sha, source, case.token)
    return sha.hexdigest()


def _digest_files(sha: hashlib._Hash, source: ImageSource, token: str) -> None:
    if isinstance(source, Echo):
        sha.update(f"\0echo of {source.echo_ms:.3f} ms".encode())
    try:
        files = [file for path in paths_of(source) for file in files_read(path)]
        for path in files:
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:  # its own message names the path
        raise ImageError(f"case {token}: one of its files can't be read ({error.strerror})") from None
    if not files:
        # All such cases would share one entry.
        raise ImageError(f"case {token}: there is no file in a folder that its image or label names")


def save(entry: Path, prepared: Prepared) -> None:
    """Write an entry; of two processes the first wins, as both wrote the same."""
    private_folder(entry.parent)
    # mkdtemp gives 0700. The name's ending keeps `load` from taking it for an entry.
    unfinished = Path(tempfile.mkdtemp(dir=entry.parent, prefix=UNFINISHED, suffix=".part"))
    try:
        _write_entry(unfinished, prepared)
        _put_in_place(unfinished, entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_entry(folder: Path, prepared: Prepared) -> None:
    use_half = float(np.abs(prepared.image).max(initial=0)) <= MAX_FLOAT16
    arrays = {
        "image": prepared.image.astype(np.float16 if use_half else np.float32),
        "label": prepared.label,
        "centres": prepared.centres,
    }
    about: dict[str, Any] = {
        "affine_ras": prepared.affine_ras.tolist(),
        "original_shape": prepared.original_shape,
        "original_affine_ras": prepared.original_affine_ras.tolist(),
        "in_pixels": prepared.in_pixels,
        "moved": prepared.moved,
        "arrays": {},
    }
    for name, array in arrays.items():
        if array is not None:
            _write(folder / name, np.ascontiguousarray(array).tobytes())
            about["arrays"][name] = {"dtype": array.dtype.str, "shape": array.shape}
    _write(folder / "about.json", json.dumps(about).encode())


def _put_in_place(unfinished: Path, entry: Path) -> None:
    try:
        os.rename(unfinished, entry)
    except OSError:
        if load(entry) is not None:
            return
        # The existing entry is damaged: rename it to a name that nobody reads, then replace it.
        damaged = unfinished.with_suffix(".damaged.part")
        os.rename(entry, damaged)
        os.rename(unfinished, entry)
        shutil.rmtree(damaged, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # Without it a power cut can leave a renamed entry of the right size that holds zeros.
        os.fsync(file.fileno())


def load(entry: Path) -> Prepared | None:
    """Return an entry with its arrays mapped, not read; None if it is missing or damaged."""
    try:
        about = json.loads((entry / "about.json").read_bytes())
        arrays: dict[str, NDArray[Any]] = {}
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
            in_pixels=bool(about["in_pixels"]),
            moved=tuple(about["moved"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    expected = dtype.itemsize * int(np.prod(shape))
    if path.stat().st_size != expected:
        raise ValueError("an array's file has another size than its shape")
    if expected == 0:  # nothing can be mapped from an empty file
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def purge(folder: str | Path) -> int:
    """Delete every entry in a cache folder and in its sites' folders, and return the number of entries.

    Everything else stays: a data folder may be given by mistake, and its patients' folders may be named like
    entries. A folder that does not exist holds none.
    """
    folder = Path(folder)
    deleted = 0
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.is_dir() or path.is_symlink():
                continue
            if is_site_folder(path.name):
                deleted += purge(path)
            elif _holds_only_parts(path) and (is_hex(path.name, 64) or path.name.startswith(UNFINISHED)):
                shutil.rmtree(path)
                deleted += is_hex(path.name, 64)
    return deleted


def _holds_only_parts(path: Path) -> bool:
    return {file.name for file in path.iterdir()} <= {*PARTS, "about.json"}


def in_memory(prepared: Prepared) -> Prepared:
    """Return a prepared case whose arrays are read into memory, the image as float32."""
    label = None if prepared.label is None else np.array(prepared.label)
    return replace(
        prepared, image=np.array(prepared.image, np.float32), label=label, centres=np.array(prepared.centres)
    )
