"""What a hospital's own records say of its agreement, by digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from hospitals import write_study

from medfed.deployment.agreement import agreement_of, policy_digest
from medfed.deployment.approvals import approve, head_of, revoke
from medfed.deployment.policy import Policy
from medfed.deployment.site_file import read_site
from medfed.errors import StudyError
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study


def test_an_agreement_is_given_by_digests(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("name: north\ndata: north\nexchange: {kind: folder, url: nowhere}\n")
    site, study = read_site(tmp_path / "site.yaml"), read_study(write_study(tmp_path))
    digest, head = study_digest(study), head_of(Path(site.secret))
    with pytest.raises(StudyError, match="site 'north': its record has no approval of study"):
        agreement_of(site, digest)
    approve(Path(site.out), study, "a person", head)
    result = agreement_of(site, digest)
    assert (result.site, result.study, result.revoked) == ("north", digest, False)
    assert result.record == head.read_text().strip()
    revoke(Path(site.out), digest, "a person", head)
    assert agreement_of(site, digest).revoked
    assert "a person" not in str(result)


def test_a_policys_digest_is_that_of_its_sorted_json() -> None:
    plain = json.dumps(msgspec.to_builtins(Policy()), sort_keys=True, separators=(",", ":"))
    plain = plain.replace("1e-05", "0.00001")  # as other writers of JSON have it
    assert policy_digest(Policy()) == hashlib.sha256(plain.encode()).hexdigest()
    assert policy_digest(Policy(minimum_cases=2)) != policy_digest(Policy())
