"""The draft of a study of images: task, network, data and training, from a preflight of every folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from medfed.data.batch_needs import WHOLE_IMAGE_NEEDS
from medfed.data.folder_options import KEYS, FolderOptions
from medfed.data.layouts import plain_layout
from medfed.data.preflight.preflight import Preflight, check
from medfed.data.preflight.summary import UNKNOWN_MODALITY
from medfed.data.settings import AnyTransform, Images
from medfed.data.splits import simulated_secret
from medfed.errors import DataError, StudyError
from medfed.evaluation.robustness import IMAGE_CHANGES
from medfed.pipeline._draft import DRAFT_SEED, Draft, yaml_inline
from medfed.pipeline._draft_case_table import case_table_lines
from medfed.pipeline._draft_channels import draft_channels
from medfed.pipeline._draft_classes import class_names, draft_number_maps, structures
from medfed.pipeline._draft_planes import are_planes, plane_grid, plane_normalisation
from medfed.pipeline._draft_recipe import (
    MANY_CASES,
    TRANSFORMS,
    Recipe,
    cases_of,
    default_recipe,
    plan_recipe,
)
from medfed.wire.templates import render

ImageTask = Literal["segment", "classify", "multilabel"]
Preflights = Mapping[str, Preflight]
AnyTransforms = tuple[AnyTransform, ...]

# The maximum of a patch's voxels: training then takes about 2 GB, and a step a few seconds on two cores.
MAX_VOXELS = 64**3
# A classifier sees the whole image as a cube of at most this many voxels per side.
MAX_SIDE = 64

# Voxels of a whole image above which a classifier's first layer halves it, to half as many features: a step
# takes .04 instead of 1.05 s for an image of 64 x 64 x 64 voxels on one core, and with the same processor
# time it learns more (benchmarks/adrenal.py).
MAX_FULL_RESOLUTION = 48**3
# Below this value, intensities without a modality are taken for Hounsfield units, in which air is -1,000.
MAX_LOWEST_HU = -500


def draft_images(
    sites: Mapping[str, Path],
    held_out: Mapping[str, Path],
    task: ImageTask | None,
    progress: Callable[[int, int], None],
    options: FolderOptions | None = None,
    budget_s: float | None = None,
) -> Draft:
    """Return the draft of a segmentation or classification, which follows from the folders if `task` is None.

    With a budget in seconds, a segmentation of volumes is planned for this machine by a short timing.

    Raises:
        DataError: if a folder can't be used, or the hospitals' folders do not match each other.
        StudyError: if it is not clear what to learn.
    """
    options = options or FolderOptions()
    preflights = {
        site: _preflight(site, path, progress, options) for site, path in {**sites, **held_out}.items()
    }
    task = task or _infer_task(preflights)
    if task == "segment":
        _check_labels(preflights)
    channels, channel_warnings = draft_channels(preflights)
    training = {site: preflights[site] for site in sites}
    if budget_s is not None and (task != "segment" or are_planes(preflights)):
        raise StudyError(
            "--budget plans segmentations of volumes; leave it out, and set train.rounds yourself"
        )
    if are_planes(preflights):
        text, warnings = _planes(training, channels, task)
    else:
        drafts = {"classify": _classification, "multilabel": _multilabel}
        recipe = default_recipe(MAX_VOXELS)
        if budget_s is not None:
            recipe = _planned(preflights, tuple(held_out), budget_s)
        text, warnings = (
            _segmentation(training, channels, recipe)
            if task == "segment"
            else drafts[task](training, channels)
        )
    beside: list[str] = []
    if task in WHOLE_IMAGE_NEEDS:
        lines, beside = case_table_lines({**sites, **held_out}, _common_findings(preflights), options.layout)
        text = text.replace("  kind: images\n", f"  kind: images\n{lines}", 1)
    if task == "segment" and (maps := draft_number_maps(training, preflights)):
        text = f"{text}\n{maps}"
    summaries = tuple(f"{site}: {_summary(one)}" for site, one in preflights.items())
    return Draft(
        _with_options(text, options),
        summaries,
        (*_preflight_warnings(preflights), *channel_warnings, *warnings, *beside),
    )


def _with_options(text: str, options: FolderOptions) -> str:
    """Return a draft with the layout and the keys of reading that a person gave."""
    said = dict(options.given)
    if options.layout is not None:
        said = {"layout": plain_layout(options.layout), **said}
    lines = "".join(f"  {key}: {_yaml_line(value)}\n" for key, value in said.items())
    return text.replace("  kind: images\n", f"  kind: images\n{lines}", 1)


def _yaml_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.split("\n...")[0].strip()


def _preflight(
    site: str, path: Path, progress: Callable[[int, int], None], options: FolderOptions
) -> Preflight:
    secret = simulated_secret(DRAFT_SEED, site)
    try:
        preflight = check(path, site_secret=secret, options=options, progress=progress)
    except DataError as error:
        raise DataError(f"{site}: {error}") from None
    if preflight.unlisted:
        raise DataError(f"{site}: {preflight.unlisted}")
    if not preflight.facts["read"]:
        raise DataError(
            f"{site}: none of its {preflight.facts['cases']} cases can be read; `medfed check` on its folder "
            f"says why{_first_refusal(preflight)}"
        )
    return preflight


def _check_labels(preflights: Preflights) -> None:
    """Raise if every label of a hospital is refused.

    Raises:
        DataError: with the first refusal.
    """
    for site, one in preflights.items():
        if one.facts["labels"] and not one.facts["classes"]:
            raise DataError(
                f"{site}: none of its {one.facts['labels']} labels can be used; `medfed check` on its folder "
                f"says why{_first_refusal(one)}"
            )


def _first_refusal(preflight: Preflight) -> str:
    """Return why the first case is refused and how to say here what its refusal names as the cure, or ''."""
    reasons = (detail for _, facts in preflight.cases if facts.refusal for _, detail in facts.issues)
    reason = next(reasons, "")
    named = any(f"data.{key}" in reason for key in KEYS)
    example = "--set data.read.uneven=resample or --set data.resample_labels=true"
    hint = f" (here such a key is said by --set, such as {example})" if named else ""
    return f". The first: {reason}{hint}" if reason else ""


def _preflight_warnings(preflights: Preflights) -> list[str]:
    warnings = []
    for site, one in preflights.items():
        count = sum(problem.severity == "error" for problem in one.problems)
        if count:
            kinds = "1 kind" if count == 1 else f"{count} kinds"
            warnings.append(
                f"{site}: its folder has {kinds} of errors; `medfed check` lists them and what to do"
            )
        details = [detail for problem in one.problems for _, detail in problem.cases]
        warnings += [f"{site}: {detail}" for detail in details if detail.startswith("left out: ")]
    return warnings


def _summary(preflight: Preflight) -> str:
    facts = preflight.facts
    text = f"{facts['layout']}, {facts['cases']} cases of {facts['patients']} patients"
    if facts["labels"]:
        text += f", {facts['labels']} with a label"
    if facts["targets"]:
        text += f", {sum(facts['targets'].values())} with a class"
    if facts["findings"]:
        text += f", {len(facts['findings'])} columns of 0 and 1"
    return f"{text}; {', '.join(facts['modality'])}"


def _infer_task(preflights: Preflights) -> ImageTask:
    """Return the task that every folder supports: segmentation if all have labels, else classification.

    Without either, two or more columns of 0 and 1 in every folder are findings.

    Raises:
        StudyError: if neither labels nor classes nor findings are in every folder.
    """
    unlabelled = [site for site, one in preflights.items() if not one.facts["labels"]]
    if not unlabelled:
        return "segment"
    unclassified = [site for site, one in preflights.items() if not one.facts["targets"]]
    if not unclassified:
        return "classify"
    if len(_common_findings(preflights)) > 1:
        return "multilabel"
    raise StudyError(
        f"it is not clear what to learn: no case has a label at {', '.join(unlabelled)}; no case has a class "
        f"at {', '.join(unclassified)}; list the cases in a cases.csv with the column 'label' (a mask's "
        "path) or 'target' (0, 1, ...), or a column of 0 and 1 for each finding; where each "
        "folder of images is a class, give --layout class_folders"
    )


def _is_ct(preflights: Preflights) -> tuple[bool, list[str]]:
    """Return whether all images are CT in Hounsfield units, and a warning if that is not certain."""
    modalities = {modality for one in preflights.values() for modality in one.facts["modality"]}
    known = sorted(modalities - {UNKNOWN_MODALITY})
    if modalities == {"CT"}:
        return True, []
    lowest = [
        one.facts["intensity"]["least"][0]
        for one in preflights.values()
        if one.facts["intensity"] and set(one.facts["modality"]) <= {UNKNOWN_MODALITY}
    ]
    if set(known) <= {"CT"} and lowest and all(low < MAX_LOWEST_HU for low in lowest):
        return True, [
            f"the images' format names no modality; all images hold values below {MAX_LOWEST_HU} and"
            " were taken for CT in HU"
        ]
    if len(known) > 1:
        return False, [f"{' and '.join(known)} in one study: each image is normalised by its own values"]
    if not known:
        return False, [
            "the images' format names no modality; the images were taken for MR, or anything but CT in HU"
        ]
    return False, []


def _planned(preflights: Preflights, held_out: tuple[str, ...], budget_s: float) -> Recipe:
    """Return what a budget buys for these hospitals on this machine."""
    from medfed.pipeline._draft_timing import time_machine

    training = {site: one for site, one in preflights.items() if site not in held_out}
    largest = max(training.values(), key=lambda one: int(one.facts["cases"]))
    size, spacing = largest.facts["size"]["median"], largest.facts["spacing_mm"]["median"]
    classes = len(structures(training)[0])
    inputs = int(next(iter(largest.facts["channels"])))
    settings = Images(transforms=msgspec.convert([yaml.safe_load(one) for one in TRANSFORMS], AnyTransforms))
    machine = time_machine(inputs, classes, size, spacing, MAX_VOXELS, settings)
    cases = cases_of({site: one.facts["splits"] for site, one in preflights.items()}, held_out)
    # The untrained model and the federated one, and that under each perturbation.
    passes = 2 + len(IMAGE_CHANGES)
    return plan_recipe(budget_s, cases, size, machine, MAX_VOXELS, passes)


def _segmentation(preflights: Preflights, channels: str, recipe: Recipe) -> tuple[str, list[str]]:
    is_ct, modality_warnings = _is_ct(preflights)
    names, label_warnings = structures(preflights)
    min_patients = max(1, min(10, *(one.facts["training_patients"] for one in preflights.values())))
    bins, reason = (
        ("hu", "CT: Hounsfield units") if is_ct else ("relative", "not CT: each image's own values")
    )
    text = render(
        Path(__file__).with_name("draft_segmentation.yaml.jinja"),
        classes=yaml_inline(names),
        channels=channels,
        intensity_bins=bins,
        reason=reason,
        voxels=recipe.voxels,
        min_patients=min_patients,
        network=recipe.network.lines,
        rate=recipe.network.rate,
        transforms=TRANSFORMS,
        rounds=recipe.rounds,
        epochs=recipe.epochs,
        compared=recipe.compared,
        planned=recipe.reasons,
    )
    return text, modality_warnings + label_warnings


def _planes(preflights: Preflights, channels: str, task: ImageTask) -> tuple[str, list[str]]:
    named = {"segment": structures, "classify": class_names, "multilabel": _finding_names}
    classes, warnings = named[task](preflights)
    grid, grid_warnings = plane_grid(preflights)
    text = render(
        Path(__file__).with_name("draft_planes.yaml.jinja"),
        task=task,
        classes=yaml_inline(classes),
        channels=channels,
        spacing_mm=grid.spacing_mm,
        patch=grid.patch,
        reason=grid.reason,
        small=grid.small,
        normalise=plane_normalisation(preflights, channels),
    )
    return text, warnings + grid_warnings


def _classification(preflights: Preflights, channels: str) -> tuple[str, list[str]]:
    classes, warnings = class_names(preflights)
    return _whole_image_text(preflights, channels, "classify", classes), warnings


def _whole_image_text(preflights: Preflights, channels: str, task: str, classes: list[str]) -> str:
    spacing_mm, patch = _whole_image_grid(preflights)
    return render(
        Path(__file__).with_name("draft_classification.yaml.jinja"),
        task=task,
        classes=yaml_inline(classes),
        channels=channels,
        spacing_mm=yaml_inline(spacing_mm),
        patch=yaml_inline(patch),
        max_side=MAX_SIDE,
        large=prod(patch) > MAX_FULL_RESOLUTION,
        many=min(one.facts["splits"].get("train", 0) for one in preflights.values()) >= MANY_CASES,
    )


# Columns of 0 and 1 that describe a patient and are no finding of the image.
NO_FINDINGS = frozenset({"sex", "gender", "male", "female", "age", "scanner", "smoker", "smoking", "fold"})


def _common_findings(preflights: Preflights) -> list[str]:
    """Return the columns of 0 and 1 that every hospital has, in the first one's order."""
    first, *others = (one.facts["findings"] for one in preflights.values())
    return [name for name in first if name not in NO_FINDINGS and all(name in other for other in others)]


def _multilabel(preflights: Preflights, channels: str) -> tuple[str, list[str]]:
    findings, warnings = _finding_names(preflights)
    return _whole_image_text(preflights, channels, "multilabel", findings), warnings


def _finding_names(preflights: Preflights) -> tuple[list[str], list[str]]:
    """Return the columns that are taken for findings, and what a person should check about them."""
    findings = _common_findings(preflights)
    if not findings:
        raise DataError("the folders' tables have no column of 0 and 1 in common; each finding needs one")
    warnings = [
        f"the columns {', '.join(findings)} hold only 0, 1 and empty cells and were taken for findings; "
        "remove from task.classes what is none"
    ]
    dropped = {name for one in preflights.values() for name in one.facts["findings"]} - set(findings)
    if dropped := dropped - NO_FINDINGS:
        warnings.append(
            f"{', '.join(sorted(dropped))}: not at every hospital with both 0 and 1, and left out; add to "
            "task.classes what is a finding: a hospital that did not label it leaves the column empty"
        )
    return findings, warnings


def _whole_image_grid(preflights: Preflights) -> tuple[list[float], list[int]]:
    """Return spacing (mm) and patch (voxels) that hold the whole median image of the largest hospital."""
    extents, spacings = [], []
    for one in preflights.values():
        size, spacing = one.facts["size"]["median"], one.facts["spacing_mm"]["median"]
        extents.append([n * mm for n, mm in zip(size, spacing, strict=True)])
        spacings.append(spacing)
    largest = [max(axis) for axis in zip(*extents, strict=True)]
    finest = [min(axis) for axis in zip(*spacings, strict=True)]
    spacing_mm = [
        float(f"{max(mm, extent / MAX_SIDE):.3g}") for mm, extent in zip(finest, largest, strict=True)
    ]
    patch = [max(16, -(-round(extent / mm) // 8) * 8) for mm, extent in zip(spacing_mm, largest, strict=True)]
    return spacing_mm, patch
