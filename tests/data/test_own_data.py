"""A hospital's own words: each part is the site file's, else that of the study's `site_overrides`."""

from __future__ import annotations

from medfed.data.own_data import OwnData
from medfed.pipeline.factory import own_data_at
from medfed.study.reading import parse_study

STUDY = """\
name: s
task: {kind: segment, classes: [background, tumour]}
network: {kind: unet}
data: {kind: images, channels: [t1, flair]}
train: {rounds: 1}
sites: {north: n, south: s}
site_overrides: {north: {channels: {flair_tra: flair}, table: mine.csv, columns: {age: Alter}}}
"""


def test_a_site_without_words_has_none() -> None:
    assert (OwnData().file, dict(OwnData().headings), dict(OwnData().channels)) == (None, {}, {})
    assert "Meier" not in repr(OwnData("Meier.csv"))


def test_the_site_file_goes_before_the_study() -> None:
    study = parse_study(STUDY)
    given = own_data_at(study, "north", "/data/north")
    assert (given.file, given.headings) == ("/data/north/mine.csv", {"age": "Alter"})
    assert given.channels == {"flair_tra": "flair"}
    own = own_data_at(study, "north", "/data/north", OwnData("x.csv", channels={"F": "flair"}))
    assert (own.file, own.headings, own.channels) == ("x.csv", {"age": "Alter"}, {"F": "flair"})
    assert own_data_at(study, "south", "/data/south") == OwnData()
