"""Which structures a hospital drew: the others are not measured there, as its labels say nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import msgspec

from medfed.errors import StudyError
from medfed.study.study import Study


def with_labelled(study: Study, site: str, names: Sequence[str]) -> Study:
    """Return a study in which a hospital drew these structures alone; of no names, the study as it is.

    Raises:
        StudyError: if the study segments nothing, or has no such structure.
    """
    if not names:
        return study
    known = getattr(study.task, "labelled", None)
    if known is None:
        raise StudyError(
            f"study '{study.name}': labelled says which structures a hospital drew, but the task segments "
            "nothing; leave it out"
        )
    foreground = tuple(study.task.classes[1:])  # type: ignore[attr-defined]
    for name in names:
        if name not in foreground:
            near = get_close_matches(name, foreground, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise StudyError(
                f"labelled: '{name}' is no structure of study '{study.name}'{hint}; it has "
                f"{', '.join(foreground)}"
            )
    drawn = {**known, site: tuple(dict.fromkeys(names))}
    task = msgspec.structs.replace(study.task, labelled=drawn)
    return msgspec.structs.replace(study, task=task)


def drawn_of(study: Study, names: Sequence[str]) -> list[str]:
    """Return those of a hospital's names that are structures of the study: it may draw more than one asks.

    Raises:
        StudyError: if it draws none that the study segments.
    """
    if not names or not hasattr(study.task, "labelled_at"):
        return []
    foreground = study.task.classes[1:]  # type: ignore[attr-defined]
    drawn = [name for name in foreground if name in names]
    if not drawn:
        raise StudyError(
            f"study '{study.name}' segments {', '.join(foreground)}; the site file says that this hospital "
            f"draws {', '.join(names)} (labelled), so it has no label for it; correct the names there"
        )
    return drawn


def undrawn(study: Study, site: str) -> str:
    """Return which structures are not measured at a hospital as it does not draw them, in words, or ''."""
    if not hasattr(study.task, "labelled_at"):
        return ""
    classes, drawn = study.task.classes, set(study.task.labelled_at(site))  # type: ignore[attr-defined]
    missing = [name for number, name in enumerate(classes) if number and number not in drawn]
    if not missing:
        return ""
    kept = ", ".join(classes[number] for number in sorted(drawn))
    return f"{', '.join(missing)} is not measured, as this hospital draws {kept} alone"
