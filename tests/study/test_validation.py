from __future__ import annotations

import pytest

from medfed.errors import StudyError
from medfed.study.reading import read_study


@pytest.mark.parametrize(
    "line, message",
    [
        ("held_out: {north: x}", r"'north' is in sites and in held_out"),
        ("sampling: {minimum: 3}", r"sampling\.minimum: 3 sites must answer, but the study has 2"),
    ],
)
def test_parts_that_do_not_fit_each_other(write, study_text, line, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(study_text + line + "\n"))


def test_a_network_that_does_not_serve_the_task(write):
    with pytest.raises(
        StudyError, match=r"network\.kind: 'resnet' does not serve task 'segment'; there are .*unet"
    ):
        read_study(write(), ["network.kind=resnet"])


def test_a_study_that_names_no_site(write, study_text):
    with pytest.raises(StudyError, match="sites: names no site; a study needs at least one"):
        read_study(write(study_text.partition("sites:")[0]))
