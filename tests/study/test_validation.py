from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from medfed.errors import StudyError
from medfed.study import validation
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


@pytest.mark.parametrize(
    "kind, package, extra",
    [
        ("ckks", "tenseal", "medfed[he]"),
        ("dp_sgd", "opacus", "medfed[privacy]"),
        ("client_dp", "opacus", "medfed[privacy]"),
        ("distributed_dp", "opacus", "medfed[privacy]"),
    ],
)
def test_a_mechanism_whose_package_is_missing_is_refused_when_the_study_is_read(
    write, monkeypatch, kind, package, extra
):
    monkeypatch.setattr(validation, "find_spec", lambda name: None if name == package else find_spec(name))
    message = rf"privacy\.kind: '{kind}' needs the package {package}, .* `pip install \"{re.escape(extra)}\"`"
    settings = "" if kind == "ckks" else ", epsilon: 8, delta: 0.00001"
    with pytest.raises(StudyError, match=message):
        read_study(write(), [f"privacy={{kind: {kind}{settings}}}"])


def test_a_network_that_does_not_serve_the_task(write):
    with pytest.raises(
        StudyError, match=r"network\.kind: 'resnet' does not serve task 'segment'; there are .*unet"
    ):
        read_study(write(), ["network.kind=resnet"])


def test_a_study_that_names_no_site(write, study_text):
    with pytest.raises(StudyError, match="sites: names no site; a study needs at least one"):
        read_study(write(study_text.partition("sites:")[0]))
