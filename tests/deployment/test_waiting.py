"""A site says once what it waits for, and since when."""

from __future__ import annotations

from medfed.deployment.site_service import WaitTold


def test_a_long_wait_is_one_line_and_a_short_one_none():
    said: list[str] = []
    told = WaitTold("north", said.append)
    told.look(None, 1000.0)
    told.look(("model", 1000.0), 1059.0)
    assert said == []
    told.look(("model", 1000.0), 1060.0)
    told.look(("model", 1000.0), 1065.0)
    assert said == ["north waits for the hub's model since 1970-01-01T00:16:40+00:00"]
    told.look(("message", 2000.0), 2100.0)
    assert said[1:] == ["north waits for the hub's message since 1970-01-01T00:33:20+00:00"]
