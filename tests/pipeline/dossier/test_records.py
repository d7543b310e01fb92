"""What a checklist says of an item: never that it is fulfilled."""

from __future__ import annotations

import pytest
from msgspec import ValidationError, json

from medfed.pipeline.dossier.records import Answer, Statements


def test_an_item_supports_with_evidence_alone() -> None:
    assert Answer(item="1", asks="x", evidence="rows.jsonl").status == "supports"
    assert Answer(item="1", asks="x").status == "not covered by medfed"


def test_statements_are_of_known_topics_and_bounded() -> None:
    with pytest.raises(ValidationError, match="unknown field `other`"):
        json.decode(b'{"other": "x"}', type=Statements)
    with pytest.raises(ValidationError, match="length <= 4000"):
        json.decode(json.encode({"risks": "x" * 4001}), type=Statements)
