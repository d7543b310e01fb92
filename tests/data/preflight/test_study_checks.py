"""Whether a hospital's data meet a study's requirements."""

from __future__ import annotations

import re

from medfed.data.preflight.preflight import Preflight, check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.settings import Images, PlanSettings

from .conftest import Hospital, ball

SECRET = b"0123456789abcdef" * 2


def rows(found: Preflight, code: str) -> set[int]:
    """The rows that a problem names."""
    names = [name for problem in found.problems if problem.code == code for name, _ in problem.cases]
    return {int(re.match(r"row (\d+) \([0-9a-f]{12}\)$", name)[1]) for name in names}


def requirements(**changes: object) -> StudyRequirements:
    return StudyRequirements(
        "liver", Images(patch=(16, 16, 16), spacing_mm=(2, 2, 2), **changes), "segment", ("background", "a")
    )


def test_a_study_that_the_hospital_can_join_and_some_that_it_cannot(hospital: Hospital) -> None:
    for _ in range(4):
        hospital.add()
    folder = hospital.write()
    preflight = check(folder, site_secret=SECRET, requirements=requirements(), processes=1)
    assert preflight.can_take_part is True
    assert preflight.exit_code == 0
    two = check(folder, site_secret=SECRET, requirements=requirements(channels=2), processes=1)
    assert two.can_take_part is False
    assert rows(two, "channel_count") == {2, 3, 4, 5}
    classify = StudyRequirements("grade", Images(), "classify", ("no", "yes"))
    none = check(folder, site_secret=SECRET, requirements=classify, processes=1)
    assert none.can_take_part is False
    (said,) = [d for p in none.problems if p.severity == "error" for _, d in p.cases]
    assert said.startswith("no case of the site has a target, which the task needs (cases.csv: 4 cases")


def test_a_label_with_a_class_that_the_study_lacks(hospital: Hospital) -> None:
    hospital.add()
    row = hospital.add(label=ball() * 3)
    preflight = check(hospital.write(), site_secret=SECRET, requirements=requirements(), processes=1)
    assert rows(preflight, "label_classes") == {row}


def test_what_a_plan_computes_is_not_held_against_the_hospital(hospital: Hospital) -> None:
    for _ in range(4):
        hospital.add()
    folder = hospital.write()

    def said(**changes: object) -> str:
        settings = Images(patch=(96, 96, 96), spacing_mm=(50, 50, 50), **changes)
        wanted = StudyRequirements("liver", settings, "segment", ("background", "a"))
        found = check(folder, site_secret=SECRET, requirements=wanted, processes=1)
        return " ".join(detail for problem in found.problems for _, detail in problem.cases)

    assert "resampled to 50.00 x 50.00 x 50.00 mm" in said()
    assert "4 images are smaller than the study's patch" in said()
    # Spacing and patch are computed from these very images before training.
    planned = said(plan=PlanSettings())
    assert "resampled" not in planned
    assert "patch" not in planned
