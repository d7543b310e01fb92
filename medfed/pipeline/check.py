"""What `medfed check` and `medfed deidentify` do before a hospital takes part: read, call, tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medfed.errors import DataError, MedfedError

if TYPE_CHECKING:
    from medfed.data.preflight.preflight import Preflight
    from medfed.study.study import Study

# What a folder that is not there gives; as an error in it would.
UNUSABLE = 2


def check(
    folder: Path, study_file: Path | None, secret_file: Path | None, as_json: bool, page: Path | None
) -> int:
    """Print a preflight of a folder and return the exit code: 0, 1 for warnings, 2 for errors."""
    from rich.console import Console

    from medfed.data.preflight.report import show, write_page

    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    try:
        found = _found(folder, study_file, secret_file, page is not None)
        if page is not None:
            write_page(found, page)
    except (MedfedError, OSError) as error:
        words = (
            str(error)
            if isinstance(error, MedfedError)
            else f"a file can't be read or written (errno {error.errno})"
        )
        print(json.dumps({"verdict": words, "exit": UNUSABLE}) if as_json else f"medfed: {words}")
        return UNUSABLE
    if as_json:
        from medfed.data.preflight.preflight import to_plain

        print(json.dumps(to_plain(found), indent=2))
    else:
        show(found, console)
        if page is not None:
            console.print(
                f"\nThe page shows patients' images: keep {page.name} in the hospital.", style="dim"
            )
    return found.exit_code


def _found(folder: Path, study_file: Path | None, secret_file: Path | None, pictures: bool) -> Preflight:
    from medfed.data.preflight.preflight import check as checked
    from medfed.data.preflight.study_checks import StudyRequirements
    from medfed.data.settings import Table

    study = _study(study_file)
    secret = _secret(secret_file)
    requirements = None
    classes = tuple(getattr(study.task, "classes", ())) if study is not None else ()
    if folder.is_file() or (study is not None and isinstance(study.data, Table)):
        from medfed.data.preflight.table import check_table

        settings = study.data if study is not None and isinstance(study.data, Table) else None
        name = study.name if study is not None else ""
        return check_table(folder, settings, classes=classes, study=name, site_secret=secret)
    if study is not None and not isinstance(study.data, Table):
        requirements = StudyRequirements(study.name, study.data, study.task.needs, classes)
    with Bar() as bar:
        return checked(
            folder,
            site_secret=secret,
            requirements=requirements,
            thumbnails=pictures,
            progress=bar.tell,
        )


def _secret(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        secret = path.read_bytes()
    except OSError:
        raise DataError("the site's secret can't be read; give the path of its file") from None
    if len(secret) < 16:
        raise DataError(f"the site's secret has {len(secret)} bytes; at least 16 are needed")
    return secret


def deidentify(
    source: Path, target: Path, secret_file: Path | None, dates: str, descriptors: str, device: str
) -> None:
    """Write a folder's DICOM images without the patient, and print how many, and what was left out."""
    import secrets

    import msgspec

    from medfed.data.deidentify import Options
    from medfed.data.deidentify import deidentify as write

    secret = _secret(secret_file)
    options = msgspec.convert({"dates": dates, "descriptors": descriptors, "device": device}, Options)
    with Bar() as bar:
        done = write(
            source,
            target,
            site_secret=secret if secret is not None else secrets.token_bytes(32),
            options=options,
            on_progress=bar.tell,
        )
    print(f"{done.files} files of {done.series} series and {done.patients} patients written")
    for reason, count in done.left_out:
        print(f"left out: {count} x {reason}")
    if secret is None:
        print("no --secret was given: a later export of the same patients will not fit this one")
    print("not looked at: the pictures themselves. Heads can show a face; `medfed check` flags them")


def _study(path: Path | None) -> Study | None:
    if path is None:
        return None
    from medfed.study.reading import read_study

    return read_study(path)


class Bar:
    """A bar on standard error while cases are read; nothing where that is no terminal."""

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._bar.start()
        self._task = self._bar.add_task("reading", total=None)
        return self

    def tell(self, done: int, all_: int) -> None:
        self._bar.update(self._task, completed=done, total=all_)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
