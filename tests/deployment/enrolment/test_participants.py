"""The certificates that were issued to sites, and their status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.participants import Participant, participant, participants
from medfed.wire.signing import serial_number


@pytest.mark.parametrize(
    "days, revoked, status",
    [(61, False, "valid"), (59, False, "expires soon"), (-1, False, "expired"), (61, True, "revoked"),
     (-1, True, "revoked")],
)  # fmt: skip
def test_the_status_follows_from_the_days_left(days, revoked, status):
    expires = datetime.now(UTC) + timedelta(days=days, hours=1)
    holder = Participant("north", "1f", "north.1f", expires, revoked)
    assert (holder.days_left, holder.status) == (days, status)


def test_every_certificate_is_listed_by_site_and_expiry(tmp_path):
    enrol.init(tmp_path / "authority", "test", ["127.0.0.1"])
    assert participants(tmp_path / "authority") == []
    for site, days in (("south", 100), ("north", 200), ("north", 90)):
        request, _ = enrol.request(tmp_path / site, site)
        enrol.sign(tmp_path / "authority", request, tmp_path / "kit", days)
    listed = participants(tmp_path / "authority")
    assert [holder.site for holder in listed] == ["north", "north", "south"]
    assert [holder.days_left for holder in listed] == [89, 199, 99]
    assert len({holder.user for holder in listed}) == 3
    enrol.revoke(tmp_path / "authority", "north", listed[0].serial)
    assert [holder.status for holder in participants(tmp_path / "authority")] == ["revoked", "valid", "valid"]


def test_the_hubs_own_certificate_has_a_record_and_is_not_listed(tmp_path):
    enrol.init(tmp_path, "test", ["127.0.0.1"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "hub" / "identity.pem").read_bytes())
    holder = participant(certificate, revoked=False)
    assert (holder.site, holder.serial) == ("hub", serial_number(certificate))
    assert participants(tmp_path) == []
