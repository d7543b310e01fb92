"""Digests say only whether two identifiers are the same, and only within one process."""

from __future__ import annotations

import subprocess
import sys

from medfed.data.identity_digest import identities_differ, identity_digests


def test_a_digest_per_identifier_and_none_for_an_empty_one():
    digests = identity_digests(b"Smith", [b"1.2", b""], [b"3.4"])
    assert [digest.split(":")[1] for digest in digests] == ["patient", "frame", "series"]
    assert digests == identity_digests(b"Smith", [b"1.2"], [b"3.4"])
    assert not any("Smith" in digest or "1.2" in digest for digest in digests)


def test_the_same_text_as_another_kind_has_another_digest():
    patient, frame = identity_digests(b"1.2", [b"1.2"], [])
    assert patient.split(":")[2] != frame.split(":")[2]


def test_identities_differ_where_both_are_known_and_none_is_shared():
    one = identity_digests(b"Smith", [b"1", b"2"], [])
    assert identities_differ(one, identity_digests(b"Jones", [b"2"], []), "patient")
    assert not identities_differ(one, identity_digests(b"Jones", [b"2"], []), "frame")
    assert identities_differ(one, identity_digests(b"", [b"3"], []), "frame")
    # Unknown on one side, or on both.
    assert not identities_differ(one, identity_digests(b"", [], []), "patient")
    assert not identities_differ(one, one, "series")


def test_digests_of_another_process_are_not_compared():
    """The key is of this process: elsewhere the same name has another digest, which says nothing here."""
    program = "from medfed.data.identity_digest import identity_digests as d; print(d(b'Smith', [], [])[0])"
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    digests = identity_digests(b"Smith", [], [])
    assert (elsewhere.stdout.strip(),) != digests
    assert not identities_differ(digests, [elsewhere.stdout.strip()], "patient")
