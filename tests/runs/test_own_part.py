"""A hospital's own folder says what this hospital sent, and not who trained."""

from __future__ import annotations

import pytest

from medfed.errors import AuditError
from medfed.evaluation.report.checklists import checklists, model_card
from medfed.evaluation.report.facts import case_table, key_figures
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.page import render
from medfed.evaluation.report.readers import departures, operation
from medfed.evaluation.report.run import read_run
from medfed.evaluation.rows import Row, write
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.own_part import own_part
from medfed.runs.provenance import merges_of
from medfed.runs.rounds import RoundLine, encode_rounds, read_rounds
from medfed.wire.audit_log import AuditLog

RESULTS = ["results/withheld", "row/test/federated/dice///n", "row/test/federated/dice///value"]


@pytest.fixture
def folder(tmp_path):
    """Late began with the model of round 2, sent updates of rounds 3 and 4, one twice, and results."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    log = AuditLog(folder.audit)
    log.write("began", study="0" * 64, sites=["late"], resumed=False)
    for number, size in ((3, 100), (4, 30), (4, 30)):
        sent = {"tensors": 2, "values": 9, "examples": 68, "scalars": ["train/loss"]}
        log.write("sent", site="late", round=number, to="hub", bytes=size, **sent)
    sent = {"tensors": 0, "values": 0, "examples": 0, "scalars": RESULTS}
    log.write("sent", site="late", round=5, to="hub", bytes=7, **sent)
    folder.rounds.write_bytes(
        encode_rounds(RoundLine(number, "late", "merged", examples=0) for number in (2, 3, 4))
    )
    facts = RunFacts(
        study="lungs",
        sites=["late", "north"],
        own="late",
        cases={"late": {"train": 68, "val": 10, "test": 12}},
    )
    folder.write_facts(facts)
    folder.study.write_text("name: lungs\n")
    about = {"round": 4, "site": "late", "split": "test", "model": "federated", "n": 12}
    write(folder.rows, [Row(**about, metric="dice", value=0.5), Row(**about, metric="hd95", value=9.0)])
    return folder


def test_rounds_and_bytes_are_those_of_the_own_log(folder):
    part = own_part(folder, "late", read_rounds(folder.rounds))
    assert part.updates == (3, 4)
    assert [(line.round, line.status, line.bytes_up) for line in part.lines] == [
        (2, "not sampled", 0),
        (3, "sent", 100),
        (4, "sent", 60),
        (5, "reported", 7),
    ]
    assert part.names == {"train/loss", *RESULTS}
    folder.audit.write_bytes(folder.audit.read_bytes().replace(b'"bytes":100', b'"bytes":101'))
    with pytest.raises(AuditError, match="audit log, line 3: does not continue"):
        own_part(folder, "late", ())


def test_a_held_out_hospital_sent_no_update(folder):
    folder.audit.unlink()
    part = own_part(folder, "late", [RoundLine(4, "late", "evaluated")])
    assert (part.updates, [line.status for line in part.lines]) == ((), ["evaluated"])


def test_nobody_is_said_to_have_trained_or_not(folder):
    assert merges_of(folder) == {}
    run = read_run(folder.path)
    card = model_card(run, "")
    assert card["Trained on"] == (
        "Which hospitals' updates were merged, the hub's run folder says; "
        "late sent its updates of rounds 3 to 4"
    )
    assert card["Who took part"].startswith(
        "By its own audit log late sent its updates of rounds 3 to 4, 68 cases. Whether they were merged"
    )
    assert "hospital" not in card["Model"]
    assert card["Training"].startswith("4 rounds")
    assert key_figures(run, None)[:4] == [
        ("hospitals in the study", "2"),
        ("updates sent", "2"),
        ("rounds", "4"),
        ("sent by late, in all", "167 bytes"),
    ]
    assert case_table(run)["lines"] == [("late", ["68", "10", "12"])]
    assert not operation(run)
    # A hospital that sent nothing here may have trained elsewhere: nothing may say that north did not.
    told = [*limits(run, None), *(str(one) for list_ in checklists(run) for one in list_.answers.values())]
    assert not [text for text in told if "north" in text or "never merged" in text]
    page = render(run)
    assert "Trained at" not in page
    assert "north" not in page


def test_what_left_is_what_the_own_log_says(folder):
    (line,) = departures(read_run(folder.path))["lines"]
    assert (line["rounds"], line["up"], line["down"]) == (2, "167 bytes", "–")
    assert line["results"] == "1"  # of two that the hospital measured
    assert departures(read_run(folder.path))["names"] == "results/withheld, train/loss"
