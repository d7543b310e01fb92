"""`medfed check`: a preflight of a hospital's folder, printed for a person or a program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from medfed.data.class_names import ClassNames
from medfed.data.datamodules import DataModule
from medfed.data.folder_options import FolderOptions
from medfed.data.index import index_folder
from medfed.data.preflight import preflight as preflights
from medfed.data.preflight.issues import Problem
from medfed.data.preflight.preflight import Preflight, to_plain
from medfed.data.preflight.report import show, write_page
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.preflight.table import TableRequirements, check_table
from medfed.data.settings import Images, Table, with_layout
from medfed.data.splits import folder_secret, simulated_secret
from medfed.data.table_file import is_table
from medfed.errors import MedfedError, StudyError
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.progress_bar import ProgressBar
from medfed.registry import kind_of
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.untrusted_text import cleaned, for_log, for_terminal

# The exit code for a folder that can't be read at all; the same as for errors in it.
UNUSABLE = 2


def check(
    folder: Path,
    study_file: Path | None,
    answer: Callable[[Mapping[str, Any]], bool],
    page: Path | None,
    own: OwnChoices | None = None,
) -> int:
    """Print a preflight of a folder and return the exit code: 0, 1 for warnings, 2 for errors.

    `answer` takes the result as plain values, and returns whether it is not to be printed in words.
    """
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    try:
        preflight = _preflight(folder, study_file, own or OwnChoices(), thumbnails=page is not None)
        if page is not None:
            write_page(_shown(preflight), page)
    except (MedfedError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"a file can't be read or written (errno {error.errno})"
        if not answer({"error": reason, "exit": UNUSABLE}):
            print(f"medfed: {for_terminal(reason)}")
        return UNUSABLE
    if answer(to_plain(preflight)):
        return preflight.exit_code
    show(_shown(preflight), console)
    if page is not None:
        console.print(f"\nThe page shows patients' images: keep {page.name} in the hospital.", style="dim")
    return preflight.exit_code


def _shown(preflight: Preflight) -> Preflight:
    """Return a preflight whose texts show every character: the study's, the site file's and the data's.

    A class, a column or a scanner's name may hold terminal sequences, hidden characters or line breaks.
    """
    problems = tuple(
        replace(
            problem,
            title=_line(problem.title),
            means=_line(problem.means),
            remedy=_line(problem.remedy),
            cases=tuple((_line(name), _line(detail)) for name, detail in problem.cases),
        )
        for problem in preflight.problems
    )
    return replace(
        preflight,
        verdict=_line(preflight.verdict),
        facts=cleaned(preflight.facts),
        problems=problems,
        study=_line(preflight.study),
        unlisted=_line(preflight.unlisted),
    )


def _line(text: str) -> str:
    return for_log(text, max(len(text), 1))


def site_of_folder(study: Study, folder: Path) -> str:
    """Return the site of a simulated study whose data lie in a folder, or ''."""
    places = {**study.sites, **study.held_out}
    return next(
        (site for site, where in places.items() if where and Path(where).resolve() == folder.resolve()), ""
    )


def _preflight(folder: Path, study_file: Path | None, own: OwnChoices, thumbnails: bool) -> Preflight:
    """Return the preflight of a folder of images or of a table, for a study if one is given."""
    if study_file is None:
        if own.secret is None:
            own = replace(own, secret=folder_secret(folder))
        if is_table(folder):
            return check_table(folder, site_secret=own.secret)
        return _check_images(folder, None, own, thumbnails)
    # Only with a study: networks bring Lightning, whose import takes longer than a small folder's check.
    from medfed.pipeline.factory import module_of, own_data_at

    study = read_study(study_file)
    site = own.name or site_of_folder(study, folder)
    if own.secret is None:
        # One process has all folders of a simulation, and derives their secrets.
        secret = simulated_secret(study.seed, site) if site else folder_secret(folder, study.seed)
        own = replace(own, secret=secret)
    if isinstance(study.data, DataModule):
        raise StudyError(
            f"check: this study's data are read by its own data module '{kind_of(study.data)}', which alone "
            "knows what a case must be; `medfed train` reads every case once before the first round"
        )
    # Whatever training raises while it builds the network, such as for a patch of which nothing is left.
    module_of(study, site)
    trains = site not in study.held_out
    if isinstance(study.data, Table):
        classes = tuple(getattr(study.task, "classes", ()))
        columns = own_data_at(study, site, "", own.data).headings
        settings = study.data_at(site) if site else study.data
        assert isinstance(settings, Table)
        wanted = TableRequirements(study.name, settings, study.task.needs, classes, columns, trains)
        preflight = check_table(folder, wanted, site_secret=own.secret)
    else:
        if folder.is_file():
            # Raises in the words of training.
            assert own.secret is not None
            index_folder(folder, site_secret=own.secret)
        preflight = _check_images(folder, _requirements(study, site, folder, own), own, thumbnails)
    cases = preflight.usable.get("train", 0) if trains else sum(preflight.usable.values())
    return _with_refusals(preflight, own.refusals(study, cases))


def _requirements(study: Study, site: str, folder: Path, own: OwnChoices) -> StudyRequirements:
    """Return what a study of images asks of a site, read as this site reads it."""
    study = own.as_read_here(study)
    settings = study.data_at(site) if site else study.data
    assert isinstance(settings, Images)
    settings = with_layout(settings, own.layout or study.layout_at(site))
    from medfed.pipeline.factory import classes_of, own_data_at, size_check

    naming = classes_of(study, site, own.words) or ClassNames(())
    return StudyRequirements(
        study.name,
        settings,
        study.task.needs,
        naming.classes,
        naming.words,
        naming.expected,
        trains=site not in study.held_out,
        own_data=own_data_at(study, site, str(folder), own.data),
        batch=study.at(site).train.batch,
        check_size=size_check(study),
        training=("train",) if study.on_all_from is None else ("train", "val"),
    )


def _check_images(
    folder: Path, requirements: StudyRequirements | None, own: OwnChoices, thumbnails: bool
) -> Preflight:
    with ProgressBar() as bar:
        return preflights.check(
            folder,
            site_secret=own.secret,
            requirements=requirements,
            bears=own.bears,
            thumbnails=thumbnails,
            options=FolderOptions(own.layout),
            progress=bar.update,
        )


def _with_refusals(preflight: Preflight, reasons: Sequence[str]) -> Preflight:
    """Return a preflight with what the hospital's own policy refuses, unless its data are refused already."""
    if not reasons or not preflight.can_take_part:
        return preflight
    problem = Problem(
        "policy",
        "error",
        "The hospital's own site file refuses the study",
        "`medfed train --site` would end before it trains.",
        "Talk to whoever keeps the site file, or to the coordinator.",
        tuple(("", reason) for reason in reasons),
    )
    verdict = f"This hospital can't take part in '{preflight.study}': its own site file refuses the study."
    return replace(preflight, verdict=verdict, problems=(problem, *preflight.problems), can_take_part=False)
