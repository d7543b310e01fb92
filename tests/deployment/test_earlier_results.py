"""Results whose difference from an earlier study's would be of a few patients."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest

from medfed.deployment.earlier_results import (
    FILE,
    apart_from_earlier,
    note_similar_results,
    patients_behind,
    similar_results,
)
from medfed.deployment.policy import Policy
from medfed.deployment.site_file import SiteFile
from medfed.deployment.study_page import OwnPart, describe
from medfed.errors import RunError
from medfed.evaluation.rows import CaseRow, Row
from medfed.evaluation.segmentation import FALSE_POSITIVE, MISSED
from medfed.exchange.folder import Folder
from medfed.study.reading import read_study

LEAST = 3


def case(number: int, structure: str = "lesion", value: float | None = 0.5, **more) -> CaseRow:
    known = {"model": "federated", "site": "north", "split": "test", "metric": "dice"}
    who = f"token-{number}"
    return CaseRow(**{**known, **more}, case=who, patient=who, value=value, structure=structure)


def row(structure: str | None = "lesion", metric: str = "dice", **more) -> Row:
    known = {"round": 3, "site": "north", "split": "test", "model": "federated", "value": 0.5, "n": 9}
    return Row(**{**known, **more}, metric=metric, structure=structure)


@pytest.fixture
def session(tiny, tmp_path):
    """Return a site's session with test patients of these numbers, in a study with another seed."""

    def make(members, seed=0, **policy):
        known = {"smallest_group": LEAST, **policy}
        study = read_study(tiny / "tiny.yaml", [f"seed={seed}", "evaluation.smallest_group=1"])
        site = SiteFile(
            name="north",
            data="",
            exchange=Folder(url="x"),
            out=str(tmp_path / "runs"),
            policy=Policy(**known),
        )
        data = SimpleNamespace(cases=lambda split: list(members) if split == "test" else [], warnings=())
        events, lines = [], []
        return SimpleNamespace(
            name="north",
            site=site,
            study=study,
            trains=True,
            digest=f"{seed:02d}" * 32,
            hospital=SimpleNamespace(data=data, patient=lambda number: f"token-{number}"),
            audit=SimpleNamespace(write=lambda event, **about: events.append((event, about))),
            progress=SimpleNamespace(log=lines.append),
            events=events,
            lines=lines,
        )

    return make


def sent(session, members, rows=(), **more):
    return apart_from_earlier(session, [case(number, **more) for number in members], list(rows) or [row()])


@pytest.mark.parametrize(
    ("members", "came", "went"),
    [(range(7), 1, 0), (range(4), 0, 2), (range(1, 7), 1, 1), (range(1, 12), 6, 1)],
)
def test_a_few_who_came_or_went_are_told_in_log_audit_log_report_and_page(session, members, came, went):
    first = session(range(6))
    note_similar_results(first)
    assert sent(first, range(6)) == [row()]
    assert (first.events, first.lines) == ([], [])

    second = session(members, seed=1)
    note_similar_results(second)
    ((event, about),) = second.events
    assert event == "similar results"
    assert about["site"] == "north"
    assert about["reason"].startswith("its patients of the test split are those of results that it sent on 2")
    assert f"(study {'00' * 6}) but for {came} who came and {went} who went: whoever has" in about["reason"]
    assert about["reason"].endswith("has results of fewer than 3 patients")
    (line,) = second.lines
    assert line == f"north: {about['reason']}. They are sent (policy.similar_results)"
    assert second.hospital.data.warnings == (about["reason"],)
    # They are sent, and not told again but for the structure's own patients.
    assert sent(second, members) == [row()]
    assert [about["reason"][:50] for _, about in second.events[1:]] == [
        "its patients of the test split (those with 'lesion"
    ]
    part = OwnPart(second.study, second.site, 4, None, about["reason"])
    words = " ".join(describe(part, "d" * 64).split())
    assert f"BUT {about['reason']}; they leave all the same (policy.similar_results)" in words


def test_a_policy_withholds_what_could_be_subtracted_and_keeps_nothing_of_it(session, tmp_path):
    sent(session(range(6)), range(6))
    before = (tmp_path / "runs" / FILE).read_text()
    second = session(range(7), seed=1, similar_results="withhold")
    note_similar_results(second)
    assert second.lines[0].endswith("They stay here (policy.similar_results)")
    dice, patients, validated = sent(
        second, range(7), [row(), row(None, "patients"), row(split="val", value=0.7)]
    )
    assert dice.is_suppressed
    assert (
        dice.note == "beside an earlier study's it would be of fewer than 3 patients (policy.similar_results)"
    )
    assert (patients.value, validated.value) == (0.5, 0.7)
    assert (tmp_path / "runs" / FILE).read_text() == before
    part = OwnPart(second.study, second.site, 4, None, similar_results(second))
    assert "so none of them leaves" in " ".join(describe(part, "d" * 64).split())
    # The same patients as before say nothing new, nor do enough others.
    for members in (range(6), range(9), range(20, 30)):
        third = session(members, seed=2, similar_results="withhold")
        note_similar_results(third)
        assert sent(third, members) == [row()]
        assert third.events == []


def test_a_structure_of_few_more_patients_is_withheld_and_the_others_are_not(session):
    """Six more are tested, of whom one has the lesion and all have a liver."""
    found = {"liver": range(12), "lesion": range(4)}

    def cases(members, lesions):
        values = {"liver": members, "lesion": [n for n in members if n in lesions]}
        return [
            case(n, name, 0.5 if n in have else 0.0, note=None if n in have else FALSE_POSITIVE)
            for name, have in values.items()
            for n in members
        ]

    rows = [row("liver"), row("lesion"), row(None)]
    assert apart_from_earlier(session(range(6)), cases(range(6), range(4)), rows) == rows
    second = session(range(12), seed=1, similar_results="withhold")
    note_similar_results(second)
    liver, lesion, mean = apart_from_earlier(second, cases(found["liver"], [*found["lesion"], 11]), rows)
    assert liver.value == 0.5
    assert lesion.is_suppressed
    assert mean.is_suppressed, "with each other structure's mean it gives the lesion's"
    ((_, about),) = second.events
    assert "(those with 'lesion') are those of results" in about["reason"]
    assert "but for 1 who came and 0 who went" in about["reason"]


def test_several_studies_that_give_one_patient_together_are_told(session):
    """0..5 and 5..10 and 0..10: the first two minus the third are patient 5."""
    for seed, members in enumerate((range(6), range(5, 11))):
        sent(session(members, seed), members)
    third = session(range(11), 2)
    note_similar_results(third)
    ((_, about),) = third.events
    assert "together with the 2 sets that it sent before, give those of fewer than 3" in about["reason"]
    sent(third, range(11))
    # Once told, it is not told of every study after it.
    fourth = session(range(20, 40), 3)
    note_similar_results(fourth)
    assert fourth.events == []


def test_fewer_than_may_be_shown_are_neither_kept_nor_compared(session, tmp_path):
    sent(session(range(2)), range(2))
    assert (tmp_path / "runs" / FILE).read_text() == ""
    sent(session(range(4)), range(4))
    few = session(range(2), seed=1)
    note_similar_results(few)
    assert few.events == []


@pytest.mark.parametrize("setting", ["policy", "privacy"])
def test_where_no_result_leaves_nothing_is_compared(session, tiny, setting):
    sent(session(range(6)), range(6))
    second = session(range(7), seed=1, **({"rows": "none"} if setting == "policy" else {}))
    if setting == "privacy":
        second.study = read_study(
            tiny / "tiny.yaml", ["privacy={kind: client_dp, where: site, noise_multiplier: 2.0}"]
        )
    assert similar_results(second) == ""


def test_patients_are_kept_by_token_and_what_they_have_in_common(session, tmp_path):
    sent(session(range(4)), range(4))
    lines = [json.loads(line) for line in (tmp_path / "runs" / FILE).read_text().splitlines()]
    assert [line.get("what", "") for line in lines] == ["", "lesion="]
    assert lines[0]["patients"] == [f"token-{number}" for number in range(4)]


def test_a_damaged_file_is_told(session, tmp_path):
    sent(session(range(4)), range(4))
    (tmp_path / "runs" / FILE).write_bytes(b'{"time"')
    with pytest.raises(RunError, match=r"results\.jsonl, line 1: of which patients .* is damaged"):
        similar_results(session(range(4)))


def test_the_patients_behind_results_by_hand():
    about = {"metric": "probability", "target": 0.0}
    classified = [case(n, name, target=float((n == 0) == (name == "ill"))) for n in range(3)
                  for name in ("well", "ill")]  # fmt: skip
    classified = [msgspec.structs.replace(one, metric="probability") for one in classified]
    assert patients_behind(classified) == {
        ("test", ""): {"token-0", "token-1", "token-2"},
        ("test", "well=1"): {"token-1", "token-2"},
        ("test", "ill=1"): {"token-0"},
    }
    findings = [case(0, "nodule", **{**about, "metric": "finding"}), case(1, "nodule", metric="finding")]
    assert patients_behind(findings) == {
        ("test", ""): {"token-0", "token-1"},
        ("test", "nodule=0"): {"token-0"},
    }
    survived = [case(n, None, metric="risk", target=9.0, event=n > 0) for n in range(3)]
    assert patients_behind(survived)["test", "event"] == {"token-1", "token-2"}
    drawn = [case(0), case(1, value=0.0, note=MISSED), case(2, value=0.0, note=FALSE_POSITIVE),
             case(3, value=None), case(4, condition="noise of 10 %")]  # fmt: skip
    assert patients_behind(drawn) == {
        ("test", ""): {f"token-{n}" for n in range(4)},
        ("test", "lesion="): {"token-0", "token-1"},
    }
