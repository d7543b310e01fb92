"""`medfed check`: a preflight of a hospital's folder, printed for a person or a program."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

from rich.console import Console

from medfed.data.case_table import OwnTable
from medfed.data.class_names import ClassNames
from medfed.data.index import index_folder
from medfed.data.layouts import Layout
from medfed.data.preflight import preflight as preflights
from medfed.data.preflight.preflight import Preflight, to_plain
from medfed.data.preflight.report import show, write_page
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.preflight.table import TableRequirements, check_table
from medfed.data.settings import Table
from medfed.data.table_file import is_table
from medfed.errors import MedfedError
from medfed.pipeline.factory import classes_of, own_table_at
from medfed.pipeline.progress_bar import ProgressBar
from medfed.pipeline.secret_file import read_secret
from medfed.study.reading import read_study
from medfed.study.study import Study

# The exit code for a folder that can't be read at all; the same as for errors in it.
UNUSABLE = 2


def check(
    folder: Path,
    study_file: Path | None,
    secret_file: Path | None,
    as_json: bool,
    page: Path | None,
    layout: Layout | None = None,
    own: OwnTable | None = None,
) -> int:
    """Print a preflight of a folder and return the exit code: 0, 1 for warnings, 2 for errors.

    `own` are the hospital's own table and headings for a study's columns, as in its site file.
    """
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    try:
        preflight = _preflight(folder, study_file, secret_file, page is not None, layout, own or OwnTable())
        if page is not None:
            write_page(preflight, page)
    except (MedfedError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"a file can't be read or written (errno {error.errno})"
        print(json.dumps({"verdict": reason, "exit": UNUSABLE}) if as_json else f"medfed: {reason}")
        return UNUSABLE
    if as_json:
        print(json.dumps(to_plain(preflight), indent=2))
        return preflight.exit_code
    show(preflight, console)
    if page is not None:
        console.print(f"\nThe page shows patients' images: keep {page.name} in the hospital.", style="dim")
    return preflight.exit_code


def site_of_folder(study: Study, folder: Path) -> str:
    """Return the site of a simulated study whose data lie in a folder, or ''."""
    places = {**study.sites, **study.held_out}
    return next(
        (site for site, where in places.items() if where and Path(where).resolve() == folder.resolve()), ""
    )


def _preflight(
    folder: Path,
    study_file: Path | None,
    secret_file: Path | None,
    thumbnails: bool,
    layout: Layout | None,
    own: OwnTable,
) -> Preflight:
    """Return the preflight of a folder of images or of a table, for a study if one is given."""
    secret = read_secret(secret_file)
    requirements = None
    if study_file is not None:
        study = read_study(study_file)
        classes = tuple(getattr(study.task, "classes", ()))
        if isinstance(study.data, Table):
            wanted = TableRequirements(study.name, study.data, study.task.needs, classes, own.headings)
            return check_table(folder, wanted, site_secret=secret)
        if folder.is_file():
            # Raises in the words of training.
            index_folder(folder, site_secret=secret or secrets.token_bytes(32))
        site = site_of_folder(study, folder)
        words = classes_of(study, site) or ClassNames(classes)
        beside = own_table_at(study, site, str(folder), own)
        requirements = StudyRequirements(
            study.name, study.data, study.task.needs, classes, words.words, words.expected, beside
        )
    elif is_table(folder):
        return check_table(folder, site_secret=secret)
    with ProgressBar() as bar:
        return preflights.check(
            folder,
            site_secret=secret,
            requirements=requirements,
            thumbnails=thumbnails,
            layout=layout,
            progress=bar.update,
        )
