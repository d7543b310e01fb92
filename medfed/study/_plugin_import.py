"""Imports a plug-in from the bytes that were digested, under a name of its own that nothing else has.

Python's own import would read the files again, which could be others by then, and could run a compiled file
of `__pycache__` in their place.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

from medfed.errors import PLUGIN_PACKAGE, MedfedError, StudyError, place_in_plugin
from medfed.study._plugin_files import PluginFiles, check_imports, missing_module

_LOCK = threading.Lock()


class _Loader(InspectLoader):
    """Gives a module's source from the plug-in's bytes."""

    def __init__(self, files: PluginFiles, path: str) -> None:
        self.files, self.path = files, path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.files.files[self.path])

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.files.files[self.path], str(self.files.folder / self.path))

    def is_package(self, fullname: str) -> bool:
        return self.path.endswith("__init__.py")

    def get_data(self, path: str) -> bytes:
        """Return a file's bytes, for `pkgutil.get_data`."""
        relative = Path(path).relative_to(self.files.folder).as_posix()
        if relative not in self.files.files:
            raise FileNotFoundError(relative)
        return self.files.files[relative]


class _Finder(MetaPathFinder):
    """Finds the modules of the plug-ins that were loaded, and no others."""

    def __init__(self) -> None:
        self.plugins: dict[str, PluginFiles] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, *parts = fullname.split(".")
        files = self.plugins.get(root)
        if files is None:
            return None
        place = "/".join(parts)
        candidates = (f"{place}/__init__.py".lstrip("/"), f"{place}.py")
        found = next((one for one in candidates if one in files.files), None)
        if found is None:
            return None
        spec = spec_from_loader(
            fullname,
            _Loader(files, found),
            origin=str(files.folder / found),
            is_package=found != f"{place}.py",
        )
        if spec is not None:
            spec.has_location = True  # so that modules have a `__file__`
        return spec


_FINDER = _Finder()


def import_plugin(files: PluginFiles) -> ModuleType:
    """Return the plug-in's package, imported under a private name that holds its digest.

    Raises:
        StudyError: naming the plug-in, the file and the line where it fails.
    """
    check_imports(files)
    digits = files.digest.removeprefix("sha256:")[:16]
    root = PLUGIN_PACKAGE.format(name=files.name, digits=digits)
    with _LOCK:
        if root in sys.modules:
            return sys.modules[root]
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)  # before those that look for files
        _FINDER.plugins[root] = files
        try:
            return importlib.import_module(root)
        except (Exception, SystemExit) as error:  # a plug-in may fail in any way; it is named
            for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
                del sys.modules[name]
            raise StudyError(_describe(files, error)) from error


def _describe(files: PluginFiles, error: BaseException) -> str:
    place = place_in_plugin(error) or f"plug-in '{files.name}'"
    remedy = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        remedy = f"; {missing_module(files, error.name)}"
    reason = str(error) if isinstance(error, MedfedError) else f"{type(error).__name__}: {error}"
    return f"{place}: {reason}{remedy}"
