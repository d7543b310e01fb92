from __future__ import annotations

import pytest
from broker_enrolment import TABLE_STUDY

from medfed.deployment.enrolment.studies import admit
from medfed.errors import EnrolmentError, StudyError
from medfed.exchange._admitted import admitted_studies


def test_named_hospitals_are_admitted_and_others_only_where_the_study_lets_them_join(enrolment, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(TABLE_STUDY)
    first = admit(enrolment.authority, study, ())
    assert first.sites == ("north",)
    with pytest.raises(StudyError, match="'south' is none of its hospitals"):
        admit(enrolment.authority, study, ["south"])
    second = admit(enrolment.authority, study, ["south"], ["sampling.joining=true"])
    assert second.sites == ("south",)
    with pytest.raises(EnrolmentError, match="'west' has no valid certificate of this federation"):
        admit(enrolment.authority, study, ["west"], ["sampling.joining=true"])
    admitted = admitted_studies(enrolment.authority)
    assert admitted == {first.digest[:16]: ["north"], second.digest[:16]: ["south"]}
