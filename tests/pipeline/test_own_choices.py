"""What a site file says of its data reaches every command that reads them."""

from __future__ import annotations

from pathlib import Path

from medfed.deployment.site_check import choices_of
from medfed.deployment.site_file import read_site
from medfed.pipeline.own_choices import OwnChoices
from medfed.study.reading import parse_study

STUDY = parse_study(
    "name: s\ntask: {kind: segment, classes: [background, tumour]}\nnetwork: {kind: unet}\n"
    "data: {kind: images, read: {uneven: resample}}\ntrain: {rounds: 1}\nsites: [north]\n"
)


def test_without_a_site_file_the_study_decides() -> None:
    own = OwnChoices()
    assert (own.name, own.secret, own.layout, own.bears, own.cache) == ("", None, None, None, None)
    assert own.as_read_here(STUDY) is STUDY
    assert own.refusals(STUDY, 0) == ()


def test_a_site_file_says_each_of_them(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "name: north\ndata: images\nexchange: {kind: folder, url: shared}\nlayout: decathlon\ncache: kept\n"
        "classes: {Tumor: tumour}\nchannels: {flair_tra: flair}\ncolumns: {age: Alter}\ntable: t.csv\n"
        "read: {uneven: refuse}\npolicy: {unreadable: {max_share: 0.5}, minimum_cases: 7}\n"
    )
    own = choices_of(read_site(tmp_path / "site.yaml"))
    assert (own.name, own.secret) == ("north", (tmp_path / "secret").read_bytes())
    assert type(own.layout).__name__ == "Decathlon"
    assert (own.cache, own.data.file) == (str(tmp_path / "kept"), str(tmp_path / "t.csv"))
    assert (own.words, own.data.channels) == ({"Tumor": "tumour"}, {"flair_tra": "flair"})
    assert own.data.headings == {"age": "Alter"}
    assert own.bears is not None
    assert own.bears.max_share == 0.5
    assert own.as_read_here(STUDY).data.read.uneven == "refuse"  # type: ignore[union-attr]
    (why,) = own.refusals(STUDY, 3)
    assert "minimum_cases" in why
