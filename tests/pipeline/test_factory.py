"""What a study file says reaches the records of hub and sites, by value."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medfed.data.own_data import OwnData
from medfed.errors import DataError, StudyError
from medfed.pipeline.factory import (
    bears_of,
    classes_of,
    data_scalars,
    egress_of,
    folders_of,
    hospital_of,
    hub_config_of,
    module_of,
    network_of,
    own_data_at,
    site_config_of,
    size_check,
)
from medfed.study.canonical import study_digest
from medfed.study.reading import parse_study
from medfed.wire.weights import digest, weights_of

STUDY = """\
name: s
seed: 7
task: {kind: classify, classes: [healthy, ill]}
network: {kind: resnet, width: 4, norm: group}
data: {kind: images, spatial_dims: 2, spacing_mm: fit, patch: [32, 32]}
train: {rounds: 4, epochs: 2, batch: 3, accumulate: 2, clip: 1.5, optimiser: {kind: sgd, lr: 0.1}}
sampling: {fraction: 0.5, minimum: 2, deadline_s: 60}
sites: {south: s, north: n}
held_out: {west: w}
site_overrides: {north: {epochs: 1, classes: {sain: healthy}}}
"""
SPEC = parse_study(STUDY)


def test_the_hub_knows_rounds_sites_and_sampling() -> None:
    hub = hub_config_of(SPEC)
    assert (hub.rounds, hub.sites, hub.evaluating) == (4, ("north", "south"), ("west",))
    assert (hub.fraction, hub.minimum, hub.deadline_s, hub.seed) == (0.5, 2, 60, 7)
    assert hub.study_digest == study_digest(SPEC)


def test_a_site_trains_by_the_study() -> None:
    site = site_config_of(SPEC)
    assert (site.epochs, site.local_epochs, site.batch) == (8, 2, 3)
    assert (site.accumulate, site.clip, site.seed, site.parties) == (2, 1.5, 7, ("north", "south"))


def test_whole_images_are_held_to_the_sizes_that_the_network_takes() -> None:
    """A ResNet halves four times: a plane of 8 x 8 is one pixel before the last time."""
    assert size_check(SPEC) is None
    check = size_check(
        parse_study(STUDY.replace("spacing_mm: fit, patch: [32, 32]", "spacing_mm: native, patch: null"))
    )
    assert check is not None
    check((32, 40))
    for _ in range(2):  # the second answer is remembered
        with pytest.raises(
            StudyError, match=r"network 'resnet': an image of 8 x 8 voxels is one voxel before"
        ):
            check((8, 8))


def test_every_hospital_of_one_process_needs_a_folder() -> None:
    assert set(folders_of(SPEC)) == {"north", "south", "west"}
    listed = parse_study(STUDY.replace("{south: s, north: n}", "[south, north]"))
    with pytest.raises(StudyError, match=r"^site 'south': the study names no folder for it"):
        folders_of(listed)


def test_the_same_study_builds_the_same_model_whatever_was_drawn_before() -> None:
    import torch

    first = digest(weights_of(module_of(SPEC)))
    torch.manual_seed(99)
    torch.rand(5)
    before = torch.get_rng_state()
    assert digest(weights_of(module_of(SPEC, "north"))) == first
    network_of(SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(weights_of(module_of(parse_study(STUDY.replace("seed: 7", "seed: 8"))))) != first


def test_a_sites_words_for_classes_are_the_studys_and_its_own() -> None:
    north = classes_of(SPEC, "north", {"krank": "ill"})
    assert north is not None
    assert (north.classes, dict(north.words)) == (("healthy", "ill"), {"sain": "healthy", "krank": "ill"})
    south = classes_of(SPEC, "south")
    assert south is not None
    assert dict(south.words) == {}


def test_a_sites_own_table_goes_before_the_studys(tmp_path) -> None:
    assert own_data_at(SPEC, "north", str(tmp_path)).file is None
    own = own_data_at(SPEC, "north", str(tmp_path), OwnData("mine.csv", {"age": "Alter"}))
    assert (own.file, dict(own.headings)) == ("mine.csv", {"age": "Alter"})


def test_counts_of_left_out_cases_may_leave_and_nothing_undeclared(tmp_path) -> None:
    data = SimpleNamespace(
        left_out={"image missing": 2}, index=SimpleNamespace(labels_by="numbers"), unit="px"
    )
    assert data_scalars(data) == {"left_out/image missing": 2.0, "labels/named": 0.0, "images/in_mm": 0.0}
    egress = egress_of(SPEC, smallest_group=5, withheld=("val/",))
    assert (egress.smallest_group, egress.withheld, egress.groups) == (5, ("val/",), ())
    assert {"left_out/image missing", "images/in_mm", *SPEC.task.scores} <= egress.scalars
    # Only a segmentation matches the names in labels.
    assert "labels/named" not in egress.scalars
    assert "labels/named" in egress_of(parse_study(BATCH_NORM % ("epochs: 1", "")), smallest_group=5).scalars
    assert f"val/personal/{SPEC.task.main_score.removeprefix('val/')}" in egress.scalars


def test_an_error_of_a_hospitals_data_names_the_hospital(tmp_path) -> None:
    with pytest.raises(DataError, match=r"^site 'north': the site's data folder is not a folder"):
        hospital_of(SPEC, "north", str(tmp_path / "missing"))
    assert bears_of(SPEC) == SPEC.data.unreadable


BATCH_NORM = """
name: dp
task: {kind: segment, classes: [background, spleen]}
network: {kind: unet, channels: [4, 8], residual_units: 0, norm: batch}
data: {kind: images, patch: [8, 8, 8]}
train: {rounds: 1, %s}
privacy: {kind: client_dp, clip: 1, epsilon: 8, delta: 0.01}
sites: {north: north, south: south}
%s
"""


def test_a_norm_that_privacy_replaces_keeps_what_the_start_gives_it(tmp_path):
    """The weights were loaded into a batch norm and lost with it, while they were told as loaded."""
    import torch

    from medfed.pipeline.factory import started_network

    plain = module_of(parse_study(BATCH_NORM % ("epochs: 1", ""))).network
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in plain.state_dict().items()}
    torch.save(state, tmp_path / "start.pt")
    study = parse_study(BATCH_NORM % ("epochs: 1", f"start: {tmp_path / 'start.pt'}"))
    network, loaded = started_network(study)
    norms = [one for one in network.modules() if isinstance(one, torch.nn.GroupNorm)]
    assert norms
    assert loaded is not None
    assert loaded.share == 1
    assert all((tensor == 0.5).all() for tensor in weights_of(module_of(study)).values())
