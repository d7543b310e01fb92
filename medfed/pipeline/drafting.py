"""`medfed new`: a first study file from hospitals' folders, with settings that follow from their content.

What to learn is read from the folders (labels to segment, a class to predict, a column of a table), the
modality from the headers, sizes and spacing from the volumes. Every setting is written into the file with its
reason, to be changed by hand: the file is the study, and no setting is hidden elsewhere. For segmentation,
spacing, patch and normalisation are left to `data.plan`, which derives them from all hospitals' fingerprints
before the first round (as nnU-Net does from one data set: Isensee, Nature Methods 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from medfed.data.folder_options import FolderOptions
from medfed.data.layouts import Layout
from medfed.data.splits import site_name
from medfed.errors import DataError, StudyError
from medfed.files import write_whole
from medfed.pipeline._draft import DRAFT_SEED, Draft
from medfed.pipeline._draft_images import ImageTask, draft_images
from medfed.pipeline._draft_tables import TargetColumns, draft_tables, table_file
from medfed.pipeline.factory import module_of
from medfed.study._yaml import apply_override
from medfed.study.reading import read_study


def draft_study(
    name: str,
    sites: Mapping[str, Path],
    held_out: Mapping[str, Path],
    *,
    task: ImageTask | None = None,
    columns: TargetColumns | None = None,
    options: FolderOptions | None = None,
    budget_s: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Draft:
    """Return a complete study over these hospitals' folders or CSV files.

    Args:
        name: the study's name.
        sites: the hospitals that train, each with its folder or CSV file.
        held_out: the hospitals on which models are only measured.
        task: what to learn from images; it follows from the folders if None.
        columns: the columns to predict from tables.
        options: how the cases lie in every folder of images, and how these are read.
        budget_s: the seconds that a run on this machine is to take, for which a segmentation is planned.
        progress: called with the number of a folder's cases that were read, and of all its cases.

    Raises:
        DataError: if a folder can't be used, or the hospitals' folders do not match each other.
        StudyError: if it is not clear what to learn.
    """
    everywhere = {**sites, **held_out}
    tables = sorted(site for site, path in everywhere.items() if table_file(path) is not None)
    images = sorted(set(everywhere) - set(tables))
    if tables and images:
        raise DataError(
            f"{', '.join(tables)}: tables, and {', '.join(images)}: images; a study has either tables or "
            "images"
        )
    if tables and options is not None and options.given:
        raise StudyError("--set says how images are read, and tables are none; leave it out")
    if tables and budget_s is not None:
        raise StudyError("--budget plans segmentations of volumes, and tables are none; leave it out")
    if tables:
        draft = draft_tables(everywhere, columns or TargetColumns())
    else:
        draft = draft_images(sites, held_out, task, progress, options, budget_s)
    quorum = max(2, -(-len(sites) // 2))
    sampling = f"sampling: {{minimum: {quorum}}}         # a round needs the updates of this many hospitals\n"
    head = f"""\
# {name}: written by `medfed new`. Every setting may be changed; `medfed kinds` lists the choices.
#   medfed train {name}.yaml
name: {name}
seed: {DRAFT_SEED}
"""
    sections = [head, draft.text, "rule: {kind: fedavg}\n", _yaml_sites("sites", sites)]
    if len(sites) > 1:
        sections.insert(3, sampling)
    if held_out:
        sections.append(_yaml_sites("held_out", held_out))
    return replace(draft, text="\n".join(sections))


def folder_options(layout: Layout | None, overrides: Sequence[str]) -> FolderOptions:
    """Return how folders are read before there is a study; `overrides` are such as data.read.uneven=resample.

    Raises:
        StudyError: for a key that does not decide how a folder is read, or a wrong value.
    """
    plain: dict[str, Any] = {"data": {}}
    for override in overrides:
        apply_override(plain, override)
    others = sorted(set(plain) - {"data"})
    if others:
        raise StudyError(
            f"--set: '{others[0]}' does not decide how a folder is read; change it in the study that is "
            "written"
        )
    if not isinstance(plain["data"], dict):
        raise StudyError("--set data: expected a key below it, such as data.read.uneven=resample")
    return FolderOptions.of(layout, plain["data"])


def write_draft(path: Path, draft: Draft) -> None:
    """Write a draft to a new file, and check that it can be read as a study whose network can be built.

    Raises:
        StudyError: if the file exists, or its network cannot learn from the patch.
    """
    if path.exists():
        raise StudyError(f"{path}: the file exists; give another name, or move it away")
    write_whole(path, draft.text)
    try:
        module_of(read_study(path))
    except Exception:
        path.unlink()
        raise


def parse_sites(arguments: Sequence[str]) -> dict[str, Path]:
    """Return folders by hospital name; an argument is NAME=FOLDER, or a folder that names the hospital.

    Raises:
        StudyError: if two hospitals have the same name, or a folder's name can't be a hospital's.
    """
    sites: dict[str, Path] = {}
    for argument in arguments:
        name, sign, folder = argument.partition("=")
        path = Path(folder if sign else argument)
        if not sign:
            name = site_name(path)
        if not name or not name[0].isalpha():
            raise StudyError(f"{argument}: gives no name for a hospital; name it, such as north={argument}")
        if name in sites:
            raise StudyError(f"two hospitals would be named '{name}'; name them, such as north={argument}")
        sites[name] = path
    return sites


def _yaml_sites(key: str, sites: Mapping[str, Path]) -> str:
    plain = {site: str(path.resolve()) for site, path in sites.items()}
    text: str = yaml.safe_dump({key: plain}, sort_keys=False, allow_unicode=True, width=1000)
    return text
