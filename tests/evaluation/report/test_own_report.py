"""The owner's page: contours without image and token, every patient as a dot, and Bland-Altman plots."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.report.gallery import CaseImages, read_outlines, write_gallery
from medfed.evaluation.report.own_report import agreements, limits_of, own_page, swarms
from medfed.evaluation.rows import CaseRow
from medfed.runs.folder import RunFolder

from .result_rows import result, run_of


def case(name: str, value: float, metric: str = "dice", image: int = 0, **more: object) -> CaseRow:
    about = {"model": "federated", "site": "north", "split": "test", "structure": "lesion", "patient": name}
    return CaseRow(**{**about, "case": f"token-{name}{image}", "metric": metric, "value": value, **more})


def dots(figure: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', figure)]


def test_contours_leave_image_and_token_out(tmp_path):
    cases = [case("a", 0.9), case("b", 0.1), case("c", 0.5)]
    rows.write(tmp_path / "cases.jsonl", cases)
    reference = np.zeros((8, 8, 4), np.uint8)
    reference[2:5, 2:5, 1:3] = 1
    images = CaseImages(np.ones((8, 8, 4)), np.roll(reference, 1, 0), reference, np.diag([1.0, 1, 1, 1]))
    write_gallery(tmp_path, lambda site, token: images, {1: "lesion"})
    drawn = read_outlines(RunFolder(tmp_path))
    assert [one.title for one in drawn] == [
        "Worst: a case of north, Dice 0.10",
        "Median: a case of north, Dice 0.50",
    ]
    for one in drawn:
        assert one.svg.count("<polyline") == 2
        assert "<image" not in one.svg
        assert "token" not in one.svg
    page = own_page(run_of(rows=[result(0.5)]), cases, drawn)
    assert "this file stays in the hospital" in page
    assert "data:image" not in page
    assert "token" not in page
    assert page.count("<polyline") == 4


def test_without_a_gallery_there_are_no_contours_and_a_damaged_file_is_told(tmp_path):
    folder = RunFolder(tmp_path)
    assert read_outlines(folder) == []
    folder.outlines.write_text("[{]")
    with pytest.raises(RunError, match=r"outlines\.json: cannot be read: .*; restore the file"):
        read_outlines(folder)


def test_each_patient_is_a_dot_at_the_mean_of_its_images():
    """Beside names of five letters the axis from 0 to 1 runs from 60 to 372 pixels."""
    cases = [case("a", 0.2), case("a", 0.4, image=1), case("b", 0.8), case("c", 0.8, site="south")]
    (one,) = swarms(cases)
    assert one["title"] == "lesion Dice"
    assert sorted(x for x, _ in dots(one["figure"])) == pytest.approx(
        [60 + 0.3 * 312, *[60 + 0.8 * 312] * 2], abs=0.01
    )
    assert "north: 2 patients; south: 1 patients" in one["figure"]


def test_a_patient_without_the_structure_is_in_no_median_of_an_overlap():
    """The report's Dice is over those who have it; what was invented in another patient has no overlap."""
    cases = [case("a", 0.6), case("b", 0.8), case("c", 0.0, note="false positive")]
    (one,) = swarms(cases)
    assert "north: 2 patients; north, has it not: 1 patients" in one["figure"]


def test_dots_at_one_place_stand_on_each_other():
    (one,) = swarms([case(str(n), 0.5) for n in range(4)])
    assert len(set(dots(one["figure"]))) == 4


def test_probabilities_are_parted_by_outcome_and_of_two_classes_one_is_shown():
    def both(name: str, p: float, ill: bool) -> list[CaseRow]:
        return [
            case(name, value, "probability", structure=structure, target=float((structure == "ill") == ill))
            for structure, value in (("well", 1 - p), ("ill", p))
        ]

    (one,) = swarms(both("a", 0.9, True) + both("b", 0.3, False))
    assert one["title"] == "ill probability"
    assert "north, has it: 1 patients; north, has it not: 1 patients" in one["figure"]


def sizes(name: str, predicted: float, reference: float) -> list[CaseRow]:
    values = {
        "volume_ml": predicted,
        "reference_volume_ml": reference,
        "volume_difference_ml": predicted - reference,
    }
    return [case(name, value, metric) for metric, value in values.items()]


def test_differences_of_sizes_have_limits_of_agreement_from_ten_cases_up():
    """Differences 1 to 10 have the mean 5.5 and the standard deviation 3.0277."""
    (one,) = agreements([row for n in range(1, 11) for row in sizes(str(n), 20.0 + n, 20.0)])
    assert one["title"] == "lesion volume: 10 cases"
    assert one["limits"] == pytest.approx((5.5 - 1.96 * 3.02765, 5.5, 5.5 + 1.96 * 3.02765), abs=1e-4)
    assert len(dots(one["figure"])) == 10
    assert limits_of([(0.0, 1.0)] * 9) is None


def test_a_run_without_rows_of_known_metrics_has_no_figures():
    assert swarms([case("a", 0.5, "hd95_mm")]) == []
    assert agreements([case("a", 0.5, "volume_difference_ml")]) == []
