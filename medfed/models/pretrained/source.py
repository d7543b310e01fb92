"""Where the tensors of a start are: a file, a run's folder, or a MONAI Bundle as a folder or zip.

A zip is read in place. Nothing is unpacked, so no name in it can reach another folder; only members of known
names are read, each up to a limit.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

from medfed.errors import StudyError

# The largest file of weights; the largest published networks of MONAI have about 1 GB.
MAX_WEIGHTS_BYTES = 8 << 30
# The largest configuration of a bundle; those of the model zoo have some kB.
MAX_JSON_BYTES = 4 << 20
# Weights hardly compress; a zip that grows by more than this is a bomb.
MAX_RATIO = 20
MAX_MEMBERS = 20_000
_BLOCK_BYTES = 1 << 20

METADATA = "configs/metadata.json"
# The configurations that define a bundle's network, in the order in which they are asked.
DEFINITIONS = ("configs/train.json", "configs/inference.json")
WEIGHTS = ("models/model.pt", "models/model.safetensors")
# Where a run folder of medfed has its final model.
RUN_WEIGHTS = "checkpoints/federated.ckpt"


@dataclass(frozen=True)
class Source:
    """The weights' file of a start, and the configurations beside it if it is a bundle's.

    name: of the file or bundle, for messages.  weights: the name of the weights' file, whose ending says the
    format.  open: opens it.  config: returns a bundle's configuration of this name, None if it has none.
    """

    name: str
    weights: str
    open: Callable[[], BinaryIO]
    config: Callable[[str], bytes | None] | None = None


def find_source(path: str | Path) -> Source:
    """Return where the weights of a start are.

    Raises:
        StudyError: if there is no such file, it is no bundle, or larger than any network.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise StudyError(f"start: {path.name} is missing, or neither a file nor a bundle's folder")
    if (root := _bundle_root(path)) is not None:
        return _zip(path, root)
    _check_size(path.name, path.stat().st_size)
    return Source(path.name, path.name, lambda: path.open("rb"))


def weights_digest(path: str | Path) -> str:
    """Return the SHA-256 of the weights' file: the same of a bundle's folder, its zip and its model.pt alone.

    Raises:
        StudyError: as `find_source`.
    """
    found = Path(path)
    files = [found / name for name in (*WEIGHTS, RUN_WEIGHTS)] if found.is_dir() else [found]
    known = next((file.stat() for file in files if file.exists()), None)
    return _digest(str(path), (known.st_mtime_ns, known.st_size, known.st_ino) if known else None)


@lru_cache(maxsize=32)
def _digest(path: str, _version: object) -> str:
    with find_source(path).open() as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _folder(path: Path) -> Source:
    def config(name: str) -> bytes | None:
        file = path / name
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            return _bounded(path.name, name, opened.read(MAX_JSON_BYTES + 1))

    for name in WEIGHTS:
        file = path / name
        if file.is_file():
            _check_size(f"{path.name}/{name}", file.stat().st_size)
            return Source(path.name, name, partial(file.open, "rb"), config)  # type: ignore[arg-type]
    run = path / RUN_WEIGHTS
    if run.is_file():
        _check_size(f"{path.name}/{RUN_WEIGHTS}", run.stat().st_size)
        return Source(path.name, RUN_WEIGHTS, partial(run.open, "rb"))  # type: ignore[arg-type]
    raise _no_weights(path.name, [one.name for one in path.glob("models/*")], config("large_files.yml"))


def _bundle_root(path: Path) -> str | None:
    """Return the folder of a zip that holds a bundle, '' if it is at the top; None of any other file.

    PyTorch's checkpoints are zips, too; they have no metadata.json.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return None
    if len(members) > MAX_MEMBERS:
        raise StudyError(f"start: {path.name} has {len(members)} members, at most {MAX_MEMBERS} are read")
    roots = {one.filename.removesuffix(METADATA) for one in members if one.filename.endswith(METADATA)}
    roots = {root for root in roots if root == "" or root.count("/") == 1}
    if len(roots) > 1:
        raise StudyError(f"start: {path.name} holds {len(roots)} bundles; give a zip of one")
    return roots.pop() if roots else None


def _zip(path: Path, root: str) -> Source:
    def read(name: str, limit: int) -> bytes | None:
        try:
            with zipfile.ZipFile(path) as opened:
                member = opened.getinfo(root + name)
                if member.file_size > MAX_RATIO * max(member.compress_size, 1 << 16):
                    raise StudyError(f"start: {path.name}: {name} is compressed beyond what weights are")
                with opened.open(member) as file:
                    return file.read(limit + 1)
        except KeyError:
            return None
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError, EOFError):
            raise StudyError(
                f"start: {path.name}: {name} cannot be read from the zip; it is damaged or encrypted; "
                "copy it again, or give the bundle's folder"
            ) from None
        except Exception as error:
            if isinstance(error, StudyError):
                raise
            raise StudyError(f"start: {path.name}: {name} is damaged; copy the zip again") from None

    def config(name: str) -> bytes | None:
        content = read(name, MAX_JSON_BYTES)
        return None if content is None else _bounded(path.name, name, content)

    def weights(name: str) -> BinaryIO:
        content = read(name, MAX_WEIGHTS_BYTES)
        assert content is not None
        _check_size(path.name, len(content))
        return io.BytesIO(content)

    with zipfile.ZipFile(path) as opened:
        names = {one.filename: one.file_size for one in opened.infolist()}
    for name in WEIGHTS:
        if root + name in names:
            _check_size(path.name, names[root + name])
            return Source(path.name, name, partial(weights, name), config)
    models = [one.removeprefix(f"{root}models/") for one in names if one.startswith(f"{root}models/")]
    raise _no_weights(path.name, models, config("large_files.yml"))


def _no_weights(name: str, found: list[str], large: bytes | None) -> StudyError:
    remedy = "give a bundle with its weights, or the file of weights itself"
    if any(one.endswith(".ts") for one in found):
        remedy = "models/model.ts is TorchScript, which is code and is never loaded; give the weights alone"
    elif large is not None:
        remedy = (
            "its large_files.yml lists them as a download of their own; fetch them on a machine with internet"
        )
    return StudyError(f"start: {name} is a bundle without {' or '.join(WEIGHTS)}; {remedy}")


def _check_size(name: str, size: int) -> None:
    if size > MAX_WEIGHTS_BYTES:
        raise StudyError(f"start: {name} has {size} bytes, at most {MAX_WEIGHTS_BYTES} are read as weights")


def _bounded(bundle: str, name: str, content: bytes) -> bytes:
    if len(content) > MAX_JSON_BYTES:
        raise StudyError(f"start: {bundle}: {name} has more than {MAX_JSON_BYTES} bytes; it is no bundle's")
    return content
