from __future__ import annotations

import json
from pathlib import Path

from medfed.study.schema import schema

ROOT = Path(__file__).parents[2]


def test_the_committed_schema_is_that_of_the_code():
    committed = json.loads((ROOT / "configs" / "study.schema.json").read_text())
    assert committed == json.loads(json.dumps(schema())), (
        "write it again: medfed kinds --schema > configs/study.schema.json"
    )
