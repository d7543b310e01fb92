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
        (
            "simulation: {workers: 2}",
            r"simulation\.workers: is 2, and engine 'threads' trains one hospital after the other; "
            r"add engine: processes",
        ),
        (
            "simulation: {engine: processes, address: local}",
            r"simulation: address and gpus are of the engine ray, and engine is 'processes'; add engine: ray",
        ),
        (
            "sampling: {fraction: 0.5}\ntrain: {rounds: 3, keep: best}",
            r"train\.keep: best: with sampling\.fraction 0\.5 each round is scored at other sites",
        ),
        (
            "rule: {kind: cyclic}\ntrain: {rounds: 3, patience: 2}",
            r"train\.patience: with rule 'cyclic' each score is of another model",
        ),
        (
            "privacy: {kind: client_dp, epsilon: 8, delta: 0.00001}\ntrain: {rounds: 3, keep: best}",
            r"train\.keep: best: needs each site's 'val/dice', which privacy 'client_dp' does not let",
        ),
        (
            "train: {rounds: 3, keep: best, keep_local: [norm]}",
            r"train\.keep: best would join a former round's",
        ),
        (
            "train: {rounds: 3, keep: best, local: {kind: apfl}}",
            r"train\.keep: best would join a former round's",
        ),
        ("train: {rounds: 3, keep: best, local: {kind: fedper}}", r"train\.keep: best would join a former"),
        (
            "train: {rounds: 3, average: 4}",
            r"train\.average: the mean is to be over the last 4 rounds, and the study has 3; "
            r"give more rounds, or .*\(--set train\.average=1\)",
        ),
        (
            "train: {rounds: 3, average: 2, keep: best}",
            r"train\.average: the study ends with the mean of its",
        ),
        (
            "train: {rounds: 3, average: 2, patience: 1}",
            r"train\.average: the study ends with the mean of its",
        ),
        ("train: {rounds: 3, average: 2, keep_local: [norm]}", r"train\.average would join a mean of shared"),
        (
            "rule: {kind: cyclic}\ntrain: {rounds: 3, average: 2}",
            r"train\.average: with rule 'cyclic' a round's model is of the hospitals that answered in it",
        ),
        (
            "describe: {privacy: {kind: secure_sum}}",
            r"describe\.privacy\.kind: 'secure_sum' with these settings needs 3 sites per round",
        ),
        (
            "describe: {}\nexchange: {kind: nvflare, rounds: 3, profile: x}",
            r"describe: the network of exchange 'nvflare' has a hub that sums no statistics",
        ),
        (
            "sampling: {joining: true}\nprivacy: {kind: secure_sum}",
            r"sampling\.joining: privacy 'secure_sum' hides updates in a sum over hospitals that each",
        ),
        (
            "sampling: {joining: true}\nrule: {kind: feddyn}",
            r"sampling\.joining: rule 'feddyn' carries a sum over a fixed number of sites",
        ),
        (
            "sampling: {joining: true}\ntrain: {rounds: 3, patience: 2}",
            r"sampling\.joining: after a hospital has joined, a round's mean score is one of other hospitals",
        ),
        ("sampling: {minimum: 3}", r"sampling\.minimum: 3 sites must answer, but the study has 2"),
    ],
)
def test_parts_that_do_not_fit_each_other(write, study_text, line, message):
    # A second `train` replaces the first.
    text = (
        study_text.partition("train:")[0] + "sites: {north: a, south: b}\n"
        if "train:" in line
        else study_text
    )
    with pytest.raises(StudyError, match=message):
        read_study(write(text + line + "\n"))


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


def test_ray_is_refused_when_the_study_is_read_where_it_is_not_installed(write, monkeypatch):
    lines = ["simulation.engine=ray", "simulation.address=10.0.0.7:6379"]
    monkeypatch.setattr(validation, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    with pytest.raises(
        StudyError,
        match=r"simulation\.engine: 'ray' needs the package ray, .* `pip install \"medfed\[ray\]\"`",
    ):
        read_study(write(), lines)
    monkeypatch.setattr(validation, "find_spec", lambda name: object())
    assert read_study(write(), lines).simulation.address == "10.0.0.7:6379"
    for address in ("ray://head:10001", "head", ":6379"):
        with pytest.raises(
            StudyError, match=rf"simulation\.address: is '{address}', expected auto, local or host"
        ):
            read_study(write(), [lines[0], f"simulation.address='{address}'"])


def test_a_network_that_does_not_serve_the_task(write):
    with pytest.raises(
        StudyError, match=r"network\.kind: 'resnet' does not serve task 'segment'; there are .*unet"
    ):
        read_study(write(), ["network.kind=resnet"])


def test_a_study_that_names_no_site(write, study_text):
    with pytest.raises(StudyError, match="sites: names no site; a study needs at least one"):
        read_study(write(study_text.partition("sites:")[0]))


@pytest.mark.parametrize(
    ("mirror", "augment", "message"),
    [
        ("[x, y]", "{flip_axes: [x]}", r"along 'y', which training never sees; add 'y' to data\.augment\.fl"),
        ("[x]", "{flip: 0}", r"along 'x', which training never sees"),
        ("[z]", "none", r"along 'z', which training never sees"),
    ],
)
def test_a_network_mirrors_only_what_training_mirrored(write, mirror, augment, message):
    with pytest.raises(StudyError, match=rf"task\.mirror: predicts images mirrored {message}"):
        read_study(write(), [f"task.mirror={mirror}", f"data.augment={augment}"])
    assert read_study(write(), ["task.mirror=[x, y, z]"]).task.mirror == ("x", "y", "z")


def test_a_plane_has_no_third_axis_to_mirror(write):
    data = "{kind: images, spatial_dims: 2, spacing_mm: fit, patch: [64, 64]}"
    with pytest.raises(StudyError, match=r"task\.mirror: 'z' is no axis of the images, which lie along x, y"):
        read_study(write(), ["task.mirror=[x, z]", f"data={data}"])
