from __future__ import annotations

from medfed.study.canonical import study_digest
from medfed.study.reading import read_study


def test_a_digest_is_of_the_study_and_not_of_where_data_lie(write, study_text):
    one = study_digest(read_study(write()))
    assert one == study_digest(read_study(write(study_text.replace("data/north", "/elsewhere"))))
    assert one != study_digest(read_study(write(), ["train.rounds=4"]))
    assert one != study_digest(read_study(write(study_text.replace("south:", "west:"))))
