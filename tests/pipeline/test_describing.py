"""What a study asks of its hospitals beforehand, how that is protected, and what a run keeps of it."""

from __future__ import annotations

import csv

import msgspec
import pytest
import torch
from hospitals import make_hospital, write_study

from medfed.errors import DataError, QuorumError, RunError, StudyError
from medfed.federation.description import Described
from medfed.pipeline.describing import (
    answer_of,
    decoded,
    describe_here,
    keep_statistics,
    kept_statistics,
    length_for,
    needs_description,
    only_describes,
    protection_of,
    request_of,
    statistics_of,
    total_of,
)
from medfed.pipeline.factory import hospital_of
from medfed.privacy import NoPrivacy
from medfed.privacy.secure_sum import SecureSum
from medfed.runs.folder import RunFolder
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import AuditLog


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("described")
    for name in ("north", "south", "west"):
        make_hospital(folder / name)
    write_study(folder)
    return folder


def study_of(folder, *overrides):
    return read_study(folder / "tiny.yaml", overrides)


def data_of(study):
    return {site: hospital_of(study, site, where).data for site, where in study.sites.items()}


def test_a_study_without_statistics_keeps_its_digest_and_one_with_them_has_another(folder):
    plain, described = study_of(folder), study_of(folder, "describe.only=false")
    assert "describe" not in public_yaml(plain)
    assert study_digest(plain) != study_digest(described)
    only = study_of(folder, "describe.only=true")
    assert [needs_description(one) for one in (plain, described, only)] == [False, True, True]
    assert [only_describes(one) for one in (plain, described, only)] == [False, False, True]
    assert needs_description(study_of(folder, "data.plan={min_patients: 2}"))


def test_statistics_are_protected_as_training_is_or_the_study_says_how(folder):
    assert protection_of(study_of(folder, "describe={}")) == NoPrivacy()
    secure = protection_of(
        study_of(folder, "describe={}", "privacy={kind: secure_sum, min_sites: 2, colluding: 0, bits: 32}")
    )
    assert isinstance(secure, SecureSum)
    # Counts up to 2^32 fit, whatever the limit of the study's updates is.
    assert (secure.limit, secure.bits, secure.max_examples, secure.colluding) == (2.0**33, 64, 1, 0)
    noisy = "privacy={kind: dp_sgd, epsilon: 8.0}"
    with pytest.raises(StudyError, match=r"privacy: 'dp_sgd' protects training and not the statistics"):
        protection_of(study_of(folder, "describe={}", noisy))
    assert protection_of(study_of(folder, "describe={privacy: {kind: none}}", noisy)) == NoPrivacy()
    with pytest.raises(StudyError, match=r"describe\.privacy: 'dp_sgd' protects training"):
        protection_of(study_of(folder, "describe={privacy: {kind: dp_sgd, epsilon: 1.0}}"))


def test_hospitals_of_one_process_are_described_and_what_is_kept_is_the_same(folder, tmp_path):
    study = study_of(folder, "describe={}", "evaluation.smallest_group=2")
    statistics = describe_here(study, data_of(study), AuditLog(None))
    assert statistics.total["patients"] == [8]
    # F, M, F, M at each hospital.
    assert statistics.total["sex"] == [4, 4, 0, 0, 0]
    assert sorted(statistics.hospitals) == ["north", "south"]
    run = RunFolder(tmp_path)
    keep_statistics(run, study, "digest", statistics)
    assert kept_statistics(run, study, "digest") == statistics
    assert decoded(study, total_of(study, statistics), 2) == statistics.total
    lines = list(csv.reader(run.table_one_csv.read_text().splitlines()))
    assert lines[0] == ["variable", "level", "overall", "north", "south"]
    assert ["patients (training)", "", "8", "4", "4"] in lines
    # Boxes of 5^3 voxels of 8 mm^3 are 1 ml.
    assert ["volume of lesion, ml", "median [IQR]", "1 [1, 1]", "1 [1, 1]", "1 [1, 1]"] in lines
    page = run.table_one.read_text()
    assert "<td>1 [1, 1]</td>" in page
    assert "learned only the sum" not in page
    with pytest.raises(RunError, match="is of another study"):
        kept_statistics(run, study, "other")
    run.statistics.write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        kept_statistics(run, study, "digest")
    run.statistics.unlink()
    assert kept_statistics(run, study, "digest") is None


def test_under_a_secure_sum_only_all_hospitals_are_in_the_table(folder, tmp_path):
    privacy = "privacy={kind: secure_sum, min_sites: 2, colluding: 0}"
    study = study_of(folder, "describe={}", privacy, "evaluation.smallest_group=2")
    plain = describe_here(
        study_of(folder, "describe={}", "evaluation.smallest_group=2"), data_of(study), AuditLog(None)
    )
    statistics = describe_here(study, data_of(study), AuditLog(None))
    assert statistics.total == plain.total
    assert statistics.hospitals == {}
    keep_statistics(RunFolder(tmp_path), study, "digest", statistics)
    assert "learned only the sum" in RunFolder(tmp_path).table_one.read_text()


def test_a_name_of_the_study_is_no_code_in_a_table(folder, tmp_path):
    named = {"task.classes": "[background, '<b>&']", "name": "t"}
    study = study_of(
        folder, "describe={}", "evaluation.smallest_group=2", *(f"{k}={v}" for k, v in named.items())
    )
    plain = study_of(folder, "describe={}", "evaluation.smallest_group=2")
    statistics = describe_here(plain, data_of(plain), AuditLog(None))
    keep_statistics(RunFolder(tmp_path), study, "digest", statistics)
    assert "<b>&" not in RunFolder(tmp_path).table_one.read_text()


def test_a_policy_withholds_more_than_the_study_does(folder):
    study = study_of(folder, "describe={}", "evaluation.smallest_group=2")
    data = data_of(study)["north"]
    assert answer_of(study, data, 1)[:3].tolist() == [1, 1, 4]
    assert answer_of(study, data, 5)[:3].tolist() == [1, 0, 0]
    assert len(answer_of(study, data, 1)) == length_for(study)


def test_a_hospital_that_cannot_be_read_is_left_out_and_too_few_are_an_error(folder):
    study = study_of(folder, "describe={}", "evaluation.smallest_group=2", "sampling.minimum=1")
    data = data_of(study)
    assert describe_here(study, {"north": data["north"]}, AuditLog(None)).total["patients"] == [4]
    strict = msgspec.structs.replace(study, sampling=msgspec.structs.replace(study.sampling, minimum=2))
    with pytest.raises(QuorumError, match="south: absent"):
        describe_here(strict, {"north": data["north"]}, AuditLog(None))


def test_what_is_no_sum_of_the_hospitals_statistics_is_refused(folder):
    study = study_of(folder, "describe={}")
    request = request_of(study)
    with pytest.raises(DataError, match="answers for 0 hospitals, expected itself"):
        request.rule.check_vector(torch.zeros(length_for(study), dtype=torch.float64))
    vector = torch.zeros(length_for(study), dtype=torch.float64)
    vector[0], vector[2] = 1, 1_000_000
    request.rule.check_vector(vector)
    vector[3] = 1_000_001  # after the two flags of `hospitals`, and `patients`
    with pytest.raises(DataError, match=r"it states 1000001 cases that train, at most 1000000 are accepted"):
        request.rule.check_vector(vector)
    vector = torch.zeros(length_for(study), dtype=torch.float64)
    vector[2] = -1
    with pytest.raises(DataError, match="summed statistics: a number of 'patients' is negative"):
        decoded(study, vector, 2)
    with pytest.raises(DataError, match="none of 0 hospitals has as many training patients"):
        statistics_of(study, Described(torch.zeros(length_for(study)), {}, ()))
