"""Import once, before worker processes fork, what reading and preparing a site's images imports.

Readers and transforms import their libraries when they are first used, so that commands that read nothing
start at once. A data loader forks new workers in each epoch: what its process has imported they share, and
what it has not each of them imports anew, in each epoch (1.5 to 2 CPU s). A format that is new in
`volume_files.py` adds its imports here; its test reads a case of each and sees what is imported even then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from medfed.data.batch_needs import Needs
from medfed.data.case import Case, first_path
from medfed.data.dicom.pixels import import_decoders
from medfed.data.nifti import read_nifti
from medfed.data.pictures import read_picture
from medfed.data.settings import Images
from medfed.data.volume_files import Reader, reader_of

# One file of each ending is opened. Series are named by numbers, so each may have an ending of its own.
MAX_ENDINGS = 16
_GZIP_READERS = ("deflate", "isal.igzip")


def import_for_workers(cases: Sequence[Case], settings: Images, needs: Needs) -> None:
    """Import what reading and preparing these cases needs, by the first bytes of one file per ending.

    Nothing is refused here: a file that cannot be read is refused where its case is read.
    """
    modules = ["medfed.data.read", "monai.data", "monai.transforms"]
    modules += ["scipy.ndimage"] if settings.transforms else []
    importers = _importers(_one_path_per_ending(cases, needs))
    for name in modules:
        import_module(name)
    for importer in importers:
        importer()


def _one_path_per_ending(cases: Iterable[Case], needs: Needs) -> list[Path]:
    paths: dict[str, Path] = {}
    for case in cases:
        mine = [first_path(source) for source in case.image if source != ()]
        if needs == "segment":
            mine += [*([case.label] if case.label else []), *(path for _, path in case.masks)]
        for path in mine:
            paths.setdefault(path.suffix.lower(), path)
        if len(paths) >= MAX_ENDINGS:
            break
    return list(paths.values())


def _importers(paths: Iterable[Path]) -> set[Callable[[], None]]:
    """Return what imports the libraries of these files; a folder is taken for a DICOM series."""
    importers = set()
    for path in paths:
        with suppress(OSError):
            reader = None if path.is_dir() else reader_of(str(path))
            importers |= {_OF_READER.get(reader, _import_nothing)} if reader else {import_decoders}
    return importers


def _import_pictures() -> None:
    from PIL import Image, ImageOps, TiffImagePlugin

    del ImageOps, TiffImagePlugin
    Image.preinit()  # its decoders of PNG and JPEG


def _import_nifti() -> None:
    import_module("nibabel")
    for name in _GZIP_READERS:
        with suppress(ImportError):
            import_module(name)


def _import_nothing() -> None:
    """MetaImage and NRRD are read with numpy alone."""


_OF_READER: dict[Reader, Callable[[], None]] = {read_picture: _import_pictures, read_nifti: _import_nifti}
