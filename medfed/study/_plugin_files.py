"""The files of a plug-in's folder, read once: their digest, and what is imported, are of the same bytes."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.errors import StudyError

# More is no package of parts of a study: a folder of data, an environment, a repository.
MAX_FILES, MAX_BYTES = 1000, 32 * 1024**2

# What Python makes of source, or reads instead of it; only source is digested, shown and run.
_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".dylib", ".dll")


@dataclass(frozen=True, eq=False, repr=False)
class PluginFiles:
    """A plug-in's folder, and the bytes of its files by their path in it (`/` between the parts)."""

    name: str
    folder: Path
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """The digest by which hospitals allow this code, such as `sha256:3f78...`.

        It is the SHA-256 over each file's SHA-256 of the path (UTF-8) and SHA-256 of the bytes, in the order
        of the paths' bytes.
        """
        whole = hashlib.sha256()
        for path in sorted(self.files, key=os.fsencode):
            whole.update(hashlib.sha256(os.fsencode(path)).digest())
            whole.update(hashlib.sha256(self.files[path]).digest())
        return f"sha256:{whole.hexdigest()}"


def read_plugin(name: str, folder: Path) -> PluginFiles:
    """Return the files of a plug-in's folder; what begins with '.' and `__pycache__` belong to no plug-in.

    Raises:
        StudyError: if it is no folder with an `__init__.py`, holds links or compiled code, or too much.
    """
    if not folder.is_dir():
        raise StudyError(f"plug-in '{name}': there is no such folder; correct its path")
    files: dict[str, bytes] = {}
    size = 0
    for path in _paths(name, folder):
        size += path.stat().st_size
        if len(files) == MAX_FILES or size > MAX_BYTES:
            raise StudyError(
                f"plug-in '{name}': its folder holds more than {MAX_FILES} files or {MAX_BYTES >> 20} MB, "
                "which is no package of a study's parts; name the folder with its __init__.py, and keep data "
                "elsewhere"
            )
        files[path.relative_to(folder).as_posix()] = path.read_bytes()
    if "__init__.py" not in files:
        raise StudyError(
            f"plug-in '{name}': its folder has no __init__.py; a plug-in is a package whose __init__.py "
            "imports its kinds, such as `from .task import Age`"
        )
    return PluginFiles(name, folder, files)


def _paths(name: str, folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if one != "__pycache__" and not one.startswith(".")]
        for one in (*folders, *files):
            path = Path(place, one)
            if path.is_symlink():
                raise StudyError(
                    f"plug-in '{name}': {path.relative_to(folder)} is a link, whose target could change "
                    "without its digest; put the file itself there"
                )
        for one in files:
            if one.startswith("."):
                continue
            path = Path(place, one)
            if not path.is_file():
                raise StudyError(f"plug-in '{name}': {path.relative_to(folder)} is no file; remove it")
            if path.suffix in _COMPILED:
                raise StudyError(
                    f"plug-in '{name}': {path.relative_to(folder)} is compiled code, which nobody can read; "
                    "put its source there, or install it as a package of its own that the plug-in imports"
                )
            yield path


def check_imports(files: PluginFiles) -> None:
    """Check that the source is Python, and imports its own modules relatively.

    An absolute import of its own name would find whatever package of that name is installed here.

    Raises:
        StudyError: naming plug-in, file and line.
    """
    for path, source in files.files.items():
        if not path.endswith(".py"):
            continue
        try:
            tree = ast.parse(source, path)
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise StudyError(f"plug-in '{files.name}': {path}{line}: is not Python: {reason}") from None
        for node in ast.walk(tree):
            if files.name in {module.partition(".")[0] for module in _imported(node)}:
                raise StudyError(
                    f"plug-in '{files.name}': {path}, line {getattr(node, 'lineno', '?')}: imports "
                    f"'{files.name}' by its name, which may be another package here; {_RELATIVELY}"
                )


_RELATIVELY = "import the plug-in's own modules relatively, such as `from .task import Age`"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def missing_module(files: PluginFiles, module: str) -> str:
    """Return what to do about a module that an import of the plug-in does not find."""
    root = module.partition(".")[0]
    if f"{root}.py" in files.files or f"{root}/__init__.py" in files.files:
        return _RELATIVELY.replace("the plug-in's own modules", f"the plug-in's own '{root}'")
    return f"install '{root}' in this environment; a plug-in brings no other packages"
