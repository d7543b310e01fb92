"""What a study's record derives from its keys: a hospital's own settings, and layers that stay."""

from __future__ import annotations

import msgspec
import pytest

from medfed.data.layouts.pattern import Pattern
from medfed.errors import DataError
from medfed.local_training.fedper import FedPer
from medfed.study.reading import parse_study
from medfed.study.study import SiteOverride, Study

TEXT = """\
name: plain
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8]}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}
train: {rounds: 5, epochs: 2, batch: 3}
sites: {a: a, b: b, c: c}
site_overrides:
  a: {epochs: 4, columns: {age: Alter}, table: Klinik.csv, layout: paired}
  b: {batch: 8, layout: {kind: pattern, image: '{case}.nii.gz'}}
"""


@pytest.fixture(scope="module")
def study() -> Study:
    return parse_study(TEXT)


def test_a_hospital_trains_with_its_own_epochs_and_batch_and_everything_else_of_the_study(
    study: Study,
) -> None:
    assert [(study.at(site).train.epochs, study.at(site).train.batch) for site in "abc"] == [
        (4, 3),
        (2, 8),
        (2, 3),
    ]
    assert study.at("c") is study
    assert msgspec.structs.replace(study.at("a"), train=study.train) == study
    # All hospitals merge equally often, so the study's own length does not change.
    assert (study.epochs, study.at("a").epochs) == (10, 20)


def test_a_hospitals_own_words_and_files_are_its_own(study: Study) -> None:
    assert [study.columns_at(site) for site in "abc"] == [{"age": "Alter"}, {}, {}]
    assert [study.table_at(site) for site in "abc"] == ["Klinik.csv", None, None]


def test_a_layout_is_named_or_described(study: Study) -> None:
    assert [type(study.layout_at(site)).__name__ for site in "abc"] == ["Paired", "Pattern", "NoneType"]
    layout = study.layout_at("b")
    assert isinstance(layout, Pattern)
    assert layout.image == "{case}.nii.gz"
    unknown = msgspec.structs.replace(study, site_overrides={"a": SiteOverride(layout="paird")})
    with pytest.raises(DataError, match="no 'paird'; did you mean 'paired'"):
        unknown.layout_at("a")


@pytest.mark.parametrize(
    ("sites", "given", "expected"), [(1, None, 1), (2, None, 1), (5, None, 3), (5, 2, 2)]
)
def test_half_of_the_sites_must_answer_unless_the_study_says_how_many(study, sites, given, expected) -> None:
    sampling = msgspec.structs.replace(study.sampling, minimum=given)
    places: dict[str, str | None] = {f"s{n}": None for n in range(sites)}
    assert msgspec.structs.replace(study, sites=places, sampling=sampling).minimum == expected


def test_the_head_is_the_networks_last_layer_by_its_path(study: Study) -> None:
    head = study.network.head
    train = msgspec.structs.replace(study.train, keep_local=("norm", "head"))
    assert head
    assert msgspec.structs.replace(study, train=train).keep_local == ("norm", f"network.{head}")
    personal = msgspec.structs.replace(study, train=msgspec.structs.replace(study.train, local=FedPer()))
    assert personal.keep_local == (f"network.{head}",)


@pytest.mark.parametrize(("changes", "expected"), [({}, False), ({"only": ("output",)}, True)])
def test_a_study_that_trains_a_part_exchanges_that_part(study: Study, changes, expected) -> None:
    assert (
        msgspec.structs.replace(study, train=msgspec.structs.replace(study.train, **changes)).trained_only
        is expected
    )
