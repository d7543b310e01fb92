"""A site takes the study that it agreed to, whatever else is offered."""

from __future__ import annotations

import msgspec
import pytest
from hospitals import write_study

from medfed.deployment.approvals import approve, revoke
from medfed.deployment.site_file import SiteFile
from medfed.deployment.study_choice import choose_study
from medfed.exchange import Offer
from medfed.files import lock
from medfed.pipeline.create_run import create_run
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study


class Offering:
    """An exchange that offers these studies."""

    def __init__(self, *offers: Offer) -> None:
        self.offers = list(offers)
        self.known: list[str] = []

    def offered_studies(self, site, *, known=(), max_wait_s=None, log=None):
        self.known = list(known)
        return [one for one in self.offers if one.digest]


class Place:
    def __init__(self, folder) -> None:
        study = read_study(write_study(folder))
        self.a, self.b = (msgspec.structs.replace(study, name=name) for name in ("a", "b"))
        self.out, self.exchange = folder / "runs", Offering()
        self.site = SiteFile(
            name="north", data="", exchange=self.exchange, out=str(self.out), secret=str(folder / "secret")
        )

    def offer(self, *studies, dead=()) -> None:
        self.exchange.offers = [Offer(study_digest(one), "", one not in dead) for one in studies]

    def approve(self, study) -> None:
        approve(self.out, study, "m.muster", self.out.parent / "secret.approvals")

    def begin(self, study, *, finished: bool = False) -> RunFolder:
        folder = RunFolder(self.out / f"{study.name}-{study_digest(study)[:8]}")
        folder.site("north")
        facts = create_run(folder, study, {})
        if finished:
            folder.write_facts(msgspec.structs.replace(facts, finished="2026-01-01"))
        return folder

    def choose(self, accept: str = "") -> str:
        self.said: list[str] = []
        return choose_study(self.site, accept, self.said.append).digest


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_the_approved_study_is_taken_and_the_other_one_named(place):
    place.approve(place.a)
    place.offer(place.a, place.b)
    assert place.choose() == study_digest(place.a)
    (said,) = place.said
    assert said.startswith(
        f"study {study_digest(place.b)[:12]} is offered, too (nobody here has approved it)"
    )


def test_the_one_that_is_accepted_now_goes_first(place):
    place.approve(place.a)
    place.offer(place.a, place.b)
    assert place.choose(study_digest(place.b)[:12]) == study_digest(place.b)


def test_one_that_was_begun_goes_on_and_is_asked_for_though_it_is_offered_no_more(place):
    for study in (place.a, place.b):
        place.approve(study)
    place.begin(place.a)
    place.offer(place.a, place.b)
    assert place.choose() == study_digest(place.a)
    assert place.exchange.known == [study_digest(place.a)]


def test_one_whose_hub_runs_goes_before_one_whose_hub_is_gone_but_an_approved_one_before_any_other(place):
    place.approve(place.a)
    place.begin(place.a)
    place.offer(place.a, place.b, dead=[place.a])
    assert place.choose() == study_digest(place.a)  # nobody approved b: it waits for a's hub
    place.approve(place.b)
    assert place.choose() == study_digest(place.b)


def test_one_that_has_ended_or_that_another_process_trains_is_left_to_it(place):
    for study in (place.a, place.b):
        place.approve(study)
    place.begin(place.a, finished=True)
    place.offer(place.a, place.b)
    assert place.choose() == study_digest(place.b)
    assert place.said == []
    place.offer(place.a)
    assert place.choose() == study_digest(place.a)  # which says that it has ended
    place.begin(place.a)
    busy = place.begin(place.b).site("north") / "exchange" / "lock"
    busy.parent.mkdir()
    place.offer(place.b, place.a)
    with busy.open("w") as held:
        lock(held)
        assert place.choose() == study_digest(place.a)


def test_a_revoked_study_is_no_more_than_any_other(place):
    for study in (place.a, place.b):
        place.approve(study)
    place.begin(place.a)
    revoke(place.out, study_digest(place.a)[:12], "m.muster", place.out.parent / "secret.approvals")
    place.offer(place.a, place.b)
    assert place.choose() == study_digest(place.b)
    assert place.exchange.known == []
