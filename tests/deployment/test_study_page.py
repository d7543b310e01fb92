"""The page by which a hospital agrees to a study: true of this hospital, not of the study's defaults."""

from __future__ import annotations

import msgspec
import pytest

from medfed.data.reading import Reading
from medfed.deployment.enrolment import enrol
from medfed.deployment.policy import Policy
from medfed.deployment.site_file import SiteFile
from medfed.deployment.study_page import OwnPart, describe, egress_size
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.federation.egress import enforce
from medfed.pipeline.factory import module_of
from medfed.pipeline.small_scores import PatientCounts
from medfed.registry import kinds
from medfed.study.reading import read_study
from medfed.wire.update import Update


@pytest.fixture
def study(tiny):
    return read_study(tiny / "tiny.yaml")


@pytest.fixture
def noised(tiny):
    return read_study(tiny / "tiny.yaml", ["privacy={kind: client_dp, where: site, noise_multiplier: 2.0}"])


def page(study, name: str = "north", *, cases: int = 4, validated: int = 12, **own) -> str:
    """Return the page of a study for a hospital with this many cases, whose site file says `own`."""
    site = SiteFile(name=name, data="", **{"exchange": Folder(url="/mnt/share"), **own})
    return describe(OwnPart(study, site, cases, PatientCounts(12, validated)), "d" * 64)


def test_the_words_name_what_a_privacy_officer_asks(study, noised):
    words = page(study)
    tensors, numbers, size = egress_size(study)
    for said in ("segment (background, lesion)", "3 rounds", f"{numbers:,} numbers in {tensors} tensors",
                 "north, south", "Protection         none", "d" * 64):  # fmt: skip
        assert said in words
    assert size > 4 * numbers
    assert "noise_multiplier: 2.0" in page(noised)
    assert all(len(line) < 200 for line in words.splitlines())
    assert "SUV" not in words
    suv = msgspec.structs.replace(study.data, read=Reading(pet="suv"))
    assert "PET as SUV by body weight" in page(msgspec.structs.replace(study, data=suv))


def test_the_page_says_that_choosing_components_sends_gains(study):
    asked = msgspec.structs.replace(study, task=msgspec.structs.replace(study.task, postprocess="auto"))
    words = page(asked)
    assert "once, the number of its validation patients, and 7 mean gains in Dice of each structure" in words
    assert "(val/components/...)" in words
    assert "val/components/0.1/lesion" not in words, "they are no scores of each round"
    assert "gains in Dice" not in page(study)
    assert "gains in Dice" not in page(asked, policy=Policy(rows="none"))
    few = page(asked, validated=4, policy=Policy(smallest_group=5))
    assert "gains in Dice" not in few


def test_the_page_says_that_validation_cases_train_in_the_last_rounds(tiny):
    words = page(read_study(tiny / "tiny.yaml", ["train.last_rounds_on_all=2"]))
    assert "3 rounds; in each, this hospital trains 1 epoch on its 4 cases" in words
    assert "in rounds 2 to 3 it trains on its validation cases, too, in as many steps" in words
    assert "in rounds 2 to 3 its validation cases count among these, and no score of them leaves" in words
    one = page(read_study(tiny / "tiny.yaml", ["train.last_rounds_on_all=1", "train.keep_local=[norm]"]))
    assert "in round 3 it trains on its validation cases, too" in one
    assert "val/personal" not in one
    assert "validation cases, too" not in page(read_study(tiny / "tiny.yaml"))


def test_the_page_says_that_a_guarantee_sends_a_risk_curve(study):
    evaluation = msgspec.structs.replace(study.evaluation, guarantee=0.9)
    asked = msgspec.structs.replace(study, evaluation=evaluation)
    words = page(asked)
    assert "at 23 thresholds in which share of its validation patients the final model fails at most" in words
    assert "in steps of none or at least 10 of them" in words
    assert "risk_<what>@<threshold>" in words
    assert "risk_" not in page(study)


def test_the_words_count_what_is_sent(study, tmp_path):
    from medfed.wire import encoding as wire
    from medfed.wire.update import Update
    from medfed.wire.weights import Difference, weights_of

    weights = weights_of(module_of(study))
    sent = wire.encode_update(Update("north", 1, Difference(weights, weights), 4, {"val/dice": 0.5}), "s")
    tensors, numbers, size = egress_size(study)
    assert (tensors, numbers) == (len(weights), sum(t.numel() for t in weights.values()))
    assert size == pytest.approx(len(sent), rel=0.1)


def test_a_huge_network_is_counted_and_not_allocated(tiny):
    study = read_study(tiny / "tiny.yaml", ["network.channels=[200000, 200000]"])
    tensors, numbers, size = egress_size(study)
    assert tensors == egress_size(read_study(tiny / "tiny.yaml"))[0]
    # The 3 x 3 x 3 kernels between so many channels alone: 4 TB.
    assert numbers > 27 * 200_000**2
    assert size > 4 * numbers


# What the page says of the examples, and whether scores, reasons of cases left out, and results leave.
PAGES = {
    "none": ("the number of training cases behind them", True, True, True),
    "secure_sum": ("only all hospitals' sum can be read", True, False, False),
    "distributed_dp": ("every hospital counts the same", False, False, False),
    "client_dp": ("every hospital counts the same", False, False, False),
    "ckks": ("the number of training cases behind them", True, True, True),
}


@pytest.mark.parametrize("kind", PAGES)
def test_the_words_say_what_leaves_beside_the_weights_under_each_mechanism(study, kind):
    examples, scores, left_out, results = PAGES[kind]
    record = kinds("privacy")[kind]
    sites = dict.fromkeys(("a", "b", "c", "d", "e", "f"), "")
    settings = {"kind": kind, **record.example, **({"min_sites": 4} if kind == "distributed_dp" else {})}
    words = page(msgspec.structs.replace(study, privacy=msgspec.convert(settings, record), sites=sites), "a")
    assert examples in words
    assert ("scores over all of its validation cases" in words) == scores
    assert ("no scores: they stay here" in words) == (not scores)
    # The format of its files leaves under each: without it nobody sees that labels differ in meaning.
    assert "whether its labels name their structures, and whether its images have a size in mm" in words
    assert ("how many cases it left out" in words) == left_out
    assert ("results over groups of at least" in words) == results
    assert ("no results; under this protection they stay here" in words) == (not results)
    # Bonawitz et al.: of 6, one colluding, floor((6 + 1) / 2) + 1 = 4; the share of 0.67 asks for 5.
    bound = "with this study's 6 hospitals per round, at least 5 must stay to its end; at most 1 of the 6 may"
    assert (bound in words) == (kind in ("secure_sum", "distributed_dp"))


def test_the_page_is_of_this_hospital_and_not_of_the_studys_defaults(tiny):
    study = read_study(
        tiny / "tiny.yaml", ["site_overrides={north: {epochs: 50}}", "sampling.deadline_s=7200", "name=ours"]
    )
    words = page(study, exchange=Folder(url="sftp://user:password@share.example/study?token=1"))
    assert words.startswith("Study 'ours' at 'north'\n")
    assert "3 rounds; in each, this hospital trains 50 epochs on its 4 cases" in words
    assert "a round goes on after 2 hours without those that have not answered" in words
    assert "folder: A folder that all sites and the hub can reach" in words
    assert "to sftp://share.example/study\n" in words
    assert "NOT signed" in words
    for wrong in ("memory", "All sites in this process", "password", "token=", "no time limit"):
        assert wrong not in words
    others = page(study, "south")
    assert "this hospital trains 1 epoch on" in others


def test_the_page_names_the_brokers_that_this_hospital_connects_to(study, tmp_path):
    enrol.init(tmp_path / "enrolment", "ours", ["hub.example"], 4222, 443, listen="127.0.0.1")
    request, _ = enrol.request(tmp_path / "credentials", "north")
    enrol.sign(tmp_path / "enrolment", request, tmp_path / "kit", 30)
    enrol.accept(tmp_path / "credentials", tmp_path / "kit")
    words = page(study, exchange=Nats(credentials=str(tmp_path / "credentials")))
    assert "to tls://hub.example:4222\n" in words
    assert "to wss://hub.example:443\n" in words
    assert "NOT signed" not in words
    proxied = Nats(
        credentials=str(tmp_path / "credentials"),
        urls=["wss://other.example:443"],
        proxy="http://me:secret@proxy.example:3128",
    )
    words = page(study, exchange=proxied)
    assert "to wss://other.example:443\n" in words
    assert "through the proxy http://proxy.example:3128\n" in words
    assert "secret@" not in words


def test_every_number_that_the_page_names_may_leave_and_no_other(study, tiny):
    """What is on the page passes `enforce`, and what is withheld or undeclared does not."""
    weights = {}
    for policy, validated in ((Policy(), 12), (Policy(), 3), (Policy(rows="none"), 12)):
        site = SiteFile(name="north", data="", exchange=Folder(url="x"), policy=policy)
        part = OwnPart(study, site, 4, PatientCounts(12, validated))
        words = describe(part, "d" * 64)
        named = dict.fromkeys(part.numbers, 0.5)
        assert enforce(Update("north", 1, weights, 4, named), weights, part.egress).scalars == named
        listed = [
            name for name in named if not name.startswith(("left_out/", "labels/", "images/", "val/personal"))
        ]
        assert listed
        assert all(name in words for name in listed)
        assert ("val/dice" in words) == (policy.rows != "none" and validated >= policy.smallest_group)


def test_the_page_says_what_the_hospitals_own_policy_keeps(study):
    assert "results over groups of at least 20 test patients" in page(study, policy=Policy(smallest_group=20))
    words = page(study, policy=Policy(rows="none"))
    assert "no results; this hospital's policy keeps them here (policy.rows)" in words
    assert "no scores: they stay here (this hospital's policy.rows)" in words
    few = page(study, validated=1)
    assert (
        "no scores: they stay here (1 validation patient; this hospital sends none over fewer than 10)" in few
    )


def test_the_page_names_the_numbers_that_stay_as_they_are_of_few_patients(study):
    site = SiteFile(name="north", data="", exchange=Folder(url="x"), policy=Policy(smallest_group=10))
    words = describe(OwnPart(study, site, 4, PatientCounts(4, 12)), "d" * 64)
    assert "not sent, as of fewer than 10 of its patients (smallest_group): train/loss\n" in words
    assert "train/loss" not in words.replace("(smallest_group): train/loss", "")
    assert "not sent, as of fewer" not in page(study)


def test_a_hospital_that_is_held_out_reads_that_it_sends_no_weights(study):
    words = page(study, "west")
    assert "This hospital      trains nothing; it measures the final model on its own cases" in words
    assert "  each round       nothing: no weights\n" in words
    assert "results over groups of at least 10 test patients" in words
    assert "how many cases it left out" in words
    assert "in all" not in words
    assert "this hospital trains" not in words


@pytest.mark.parametrize(
    ("changes", "bytes_per_number", "groups"),
    [
        ([], 4, 1),
        (["rule={kind: scaffold}", "train.local={kind: scaffold}"], 4, 2),
        (["privacy={kind: secure_sum, min_sites: 2, colluding: 0}"], 8, 1),
    ],
)
def test_the_bytes_of_the_whole_study_are_those_of_what_is_really_sent(
    tiny, changes, bytes_per_number, groups
):
    from medfed.files import format_bytes

    study = read_study(tiny / "tiny.yaml", changes)
    tensors, numbers, _ = egress_size(study)
    # 120 bytes of names and offsets for each tensor, 3 rounds.
    sent = format_bytes(3 * groups * (numbers * bytes_per_number + 120 * tensors))
    assert f"in all           at most about {sent} of weights in 3 rounds" in page(study)


def test_a_name_of_the_studys_author_poses_as_no_word_of_the_page(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        """
name: tab
task: {kind: tabular, classes: ["healthy), by a network of 40 numbers\\e[8m", "disease <= 2"]}
network: {kind: fully_connected, hidden: []}
data: {kind: table, target: disease, features: [age, "bp; predicted: sex"]}
train: {rounds: 1, epochs: 1, batch: 16, optimiser: {kind: adam, lr: 0.01}}
sites: [north, south]
"""
    )
    lines = page(read_study(file)).splitlines()
    training = next(line for line in lines if line.startswith("Training"))
    assert r'("healthy), by a network of 40 numbers\u001b[8m", disease <= 2), by a network' in training
    assert 'Data               a table: age, "bp; predicted: sex"; predicted: disease' in lines


def test_the_page_says_what_leaves_before_training(tiny):
    from medfed.pipeline.describing import answer_of
    from medfed.pipeline.factory import hospital_of

    assert "before training" not in page(read_study(tiny / "tiny.yaml"))
    study = read_study(tiny / "tiny.yaml", ["data.plan={min_patients: 2, voxels: 4096}"])
    words = page(study)
    sent = answer_of(study, hospital_of(study, "north", study.sites["north"]).data, 1)
    assert f"  before training  once, {len(sent):,} numbers" in words
    # The hospital's own limit, which is higher than the study's.
    assert "none of fewer than 10 patients" in words
    assert "patients with each structure, and a histogram of its volumes: lesion" in words
    assert "the hub sees this hospital's own numbers" in words
    assert "agree on keys" not in words
    assert "patches as all hospitals' statistics give" in words
    summed = read_study(
        tiny / "tiny.yaml",
        [
            "describe={privacy: {kind: secure_sum, min_sites: 2, colluding: 0}}",
            "evaluation.smallest_group=12",
        ],
    )
    assert "the hub learns only the sum over at least 2 hospitals (secure_sum)" in page(summed)
    assert "none of fewer than 12 patients" in page(summed)
    assert "agree on keys" in page(summed)
    # A hospital that is held out sends none.
    assert "before training" not in page(study, "west")


def test_the_page_of_a_study_that_only_describes_says_that_nothing_else_leaves(tiny):
    words = page(read_study(tiny / "tiny.yaml", ["describe={only: true}"]))
    assert "Statistics only    nothing is trained" in words
    assert "  after that       nothing\n  never" in words
    assert "each round       " not in words
    assert "epoch" not in words
    assert "Who receives it    the hub, which adds all hospitals' numbers" in words


def test_the_page_counts_the_columns_and_answers_of_a_table(tiny):
    table = "{kind: table, features: [age, stage], categorical: {stage: [I, II]}, target: ill}"
    study = read_study(
        tiny / "tiny.yaml",
        [
            f"data={table}",
            "task={kind: tabular, classes: [a, b]}",
            "network={kind: fully_connected}",
            "describe={}",
        ],
    )
    words = page(study)
    assert "  patients of each class, or with the event" in words
    assert "  of each column: values and missing ones, sum and sum of squares, patients of each word" in words
    assert "histograms of spacing" not in words


def test_the_page_says_that_others_may_join_and_that_this_hospital_is_one_of_them(tiny):
    study = read_study(tiny / "tiny.yaml", ["sampling.joining=true"])
    others = "the coordinator may admit others while the study runs, whose names nobody knows yet"
    assert others in page(study)
    assert "this hospital is one of those" not in page(study)
    assert "this hospital is one of those: it joins, and begins with the newest model" in page(study, "far")
    assert others not in page(read_study(tiny / "tiny.yaml"))
