"""What a hospital does before anything trains: it believes the digest alone, holds its policy,
and asks its people.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hospitals import STUDY

from medfed.deployment import site_service as hospital
from medfed.deployment.admission import parse_offer
from medfed.deployment.approvals import approve, is_approved, revoke
from medfed.deployment.site_file import SiteFile
from medfed.errors import ExchangeError, StudyError
from medfed.exchange.folder import Folder
from medfed.pipeline.factory import module_of
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import WITHHELD
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import parse_study, read_study
from medfed.wire.audit_log import entries, verify
from medfed.wire.update import GlobalModel
from medfed.wire.weights import weights_of

TINY = STUDY.format(rounds=3).partition("sites:")[0]
PATIENCE_S = 60


class Place:
    """A hub that offers a study over a folder, and the hospital north's own file."""

    def __init__(self, folder: Path, data: Path, text: str = "sites: [north, south]\n") -> None:
        self.folder = folder
        (folder / "study.yaml").write_text(TINY + text)
        self.study = read_study(folder / "study.yaml")
        self.digest = study_digest(self.study)
        self.hub = Folder(url=str(folder / "share"), poll_s=0.02).open_hub(self.digest, folder / "hub")
        self.hub.advertise_study(public_yaml(self.study), ["north", "west"])
        self.site(data)

    def site(self, data: Path, name: str = "north", more: str = "") -> Path:
        path = self.folder / "site.yaml"
        path.write_text(
            f"name: {name}\ndata: {data}\nexchange: {{kind: folder, url: share, poll_s: 0.02}}\naccelerator: "
            f"cpu\n{more}"
        )
        return path

    @property
    def sent(self) -> list[Path]:
        """What lies at the exchange that this hospital wrote, beside that it was there."""
        written = (self.folder / "share" / "up").rglob("*")
        return [path for path in written if path.is_file() and path.parent.name != "heartbeat"]


@pytest.fixture
def place(tmp_path, tiny):
    opened = Place(tmp_path, tiny / "north")
    yield opened
    opened.hub.close()


def test_nobody_agreed_so_nothing_trains_and_nothing_is_sent(place):
    with pytest.raises(StudyError, match="nobody here has approved study 'tiny' yet") as caught:
        hospital.take_part(place.folder / "site.yaml")
    page = next((place.folder / "runs").glob("*.txt")).read_text()
    assert str(next((place.folder / "runs").glob("*.txt"))) in str(caught.value)
    assert place.digest in page
    assert "never            an image" in page
    # Beside the words, the very file, by which the digest can be made again.
    offered = next((place.folder / "runs").glob("*.yaml")).read_text()
    assert study_digest(parse_study(offered)) == place.digest
    assert place.sent == []
    status = json.loads(next((place.folder / "runs").glob("tiny-*/status.json")).read_text())
    assert status["state"] == "stopped"


def test_the_page_for_a_changed_study_says_what_changed(place):
    before = msgspec.structs.replace(place.study, seed=7)
    approve(place.folder / "runs", before, "m.muster", place.folder / "secret.approvals")
    shown = []
    with pytest.raises(StudyError, match="was not approved"):
        hospital.take_part(place.folder / "site.yaml", ask=lambda words: bool(shown.append(words)))
    assert f"({study_digest(before)[:12]})\n  seed: 7 -> 1\n" in shown[0]


def test_a_site_whose_approval_was_revoked_sends_nothing_more(place):
    weights = weights_of(module_of(place.study))
    place.hub.publish(GlobalModel(0, weights, study_digest=place.digest))
    known = place.digest

    class Revoking(Progress):
        def training(self, site, step, steps):
            if is_approved(place.folder / "runs", known):
                revoke(place.folder / "runs", known, "m.muster")

    with pytest.raises(StudyError, match="site 'north': this hospital revoked its approval of the study"):
        hospital.take_part(place.folder / "site.yaml", accept=known, progress=Revoking())
    (arrival,) = place.hub.collect(1, ["north"], 30)
    assert arrival.update is None
    assert "this hospital no longer approves it" in str(arrival.error)
    assert [line["study"] for line in written(place.folder / "runs", "approval revoked")] == [known]
    assert written(place.folder / "runs", "sent") == []


def test_a_sites_files_are_its_owners_alone_whatever_the_umask(place):
    weights = weights_of(module_of(place.study))
    place.hub.publish(GlobalModel(3, weights, final=True, study_digest=place.digest))
    before = os.umask(0)
    try:
        hospital.take_part(place.folder / "site.yaml", accept=place.digest)
    finally:
        os.umask(before)
    own = [place.folder / "secret", place.folder / "runs", *(place.folder / "runs").rglob("*")]
    assert {path.name for path in own} >= {
        "consent.jsonl",
        "approved",
        "exchange",
        "cases.jsonl",
        "cases.html",
        "own_report.html",
        "federated.ckpt",
    }
    assert {path.stat().st_mode & 0o777 for path in own if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in own if path.is_dir()} == {0o700}
    # What the hub must read in the shared folder is as the umask says.
    assert {path.stat().st_mode & 0o777 for path in place.sent} == {0o666}


def test_results_of_too_few_patients_stay_and_the_rest_of_the_study_goes_on(place):
    # One test patient, and the default policy sends nothing over fewer than ten.
    weights = weights_of(module_of(place.study))
    place.hub.publish(GlobalModel(3, weights, final=True, study_digest=place.digest))
    folder = hospital.take_part(place.folder / "site.yaml", accept=place.digest)
    (arrival,) = place.hub.collect(4, ["north"], 30)
    assert arrival.update.scalars[WITHHELD] >= 1
    assert not any(name.startswith("row/") for name in arrival.update.scalars)
    assert (folder.path / "report.html").exists()


def test_a_site_that_is_started_again_with_other_data_says_so_in_log_audit_log_and_report(place, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(Path(msgspec.yaml.decode((place.folder / "site.yaml").read_bytes())["data"]), data)
    path = place.site(data)
    place.hub.publish(GlobalModel(0, weights_of(module_of(place.study)), study_digest=place.digest))

    class Interrupting(Progress):
        def training(self, site, step, steps):
            raise KeyboardInterrupt

    class Logged(Progress):
        def log(self, text):
            lines.append(text)

    with pytest.raises(KeyboardInterrupt):
        hospital.take_part(path, accept=place.digest, progress=Interrupting())
    assert written(place.folder / "runs", "data changed") == []
    rows = (data / "cases.csv").read_text().splitlines()
    (data / "cases.csv").write_text("\n".join(rows[:2] + rows[3:]) + "\n")
    weights = weights_of(module_of(place.study))
    place.hub.publish(GlobalModel(3, weights, final=True, study_digest=place.digest))
    lines = []
    folder = hospital.take_part(path, progress=Logged())
    (entry,) = written(place.folder / "runs", "data changed")
    assert entry["reason"] == "its data are not those with which it was here before (6 cases): 1 gone"
    assert any(entry["reason"] in line and "put the former data back" in line for line in lines)
    assert entry["reason"] in folder.report.read_text()


def test_a_refusal_is_respected(place):
    shown = []
    with pytest.raises(StudyError, match="was not approved; nothing was trained and nothing was sent"):
        hospital.take_part(place.folder / "site.yaml", ask=lambda words: bool(shown.append(words)))
    assert place.digest in shown[0]
    assert place.sent == []
    assert not is_approved(place.folder / "runs", place.digest)


@pytest.mark.parametrize("accept", ["", "0" * 64, "short"])
def test_only_this_studys_digest_is_agreement(place, accept):
    accept = accept if accept != "short" else place.digest[:11]
    with pytest.raises(StudyError, match=r"nobody here has approved|the hub offers study"):
        hospital.take_part(place.folder / "site.yaml", accept=accept)
    assert not is_approved(place.folder / "runs", place.digest)


def test_a_policys_refusal_reaches_the_hub_without_its_reason(place, tiny):
    path = place.site(tiny / "north", more="policy: {minimum_cases: 99, max_rounds: 2}\n")
    with pytest.raises(StudyError, match="this hospital's policy does not allow study 'tiny'") as caught:
        hospital.take_part(path, accept=place.digest)
    assert "(policy.minimum_cases)" in str(caught.value)
    assert "(policy.max_rounds)" in str(caught.value)
    (arrival,) = place.hub.collect(1, ["north"], 30)
    assert str(arrival.error) == "site 'north', round 1: this hospital's policy does not allow the study"
    assert not is_approved(place.folder / "runs", place.digest)


def test_a_study_without_this_hospital_is_refused(place, tiny):
    path = place.site(tiny / "west", name="west")
    with pytest.raises(StudyError, match=r"study 'tiny' has no site 'west' \(it has north, south\)"):
        hospital.take_part(path, accept=place.digest)


def test_a_file_that_is_not_the_study_it_is_called_is_refused(place):
    # As one would do who can write to storage where nothing is signed: other words under the agreed digest.
    changed = public_yaml(place.study).replace("rounds: 3", "rounds: 300")
    place.hub.advertise_study(changed, ["north"])
    with pytest.raises(
        ExchangeError, match=f"offers study {place.digest[:12]}, but the file it sends is study"
    ) as caught:
        hospital.take_part(place.folder / "site.yaml", accept=place.digest)
    assert place.sent == []
    log = place.folder / "runs" / "audit.jsonl"
    verify(log)
    (line,) = entries(log)
    assert (line["event"], line["site"], line["reason"]) == ("study refused", "north", str(caught.value))


# --------------------------------------------------------------------------------------------- the hub's file


def written(runs: Path, event: str) -> list[dict]:
    """Return the lines of a hospital's audit logs with this event."""
    lines = [json.loads(line) for path in runs.rglob("audit.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def wait_for(look):
    end = time.monotonic() + PATIENCE_S
    while not (result := look()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def test_a_model_that_was_changed_is_refused_and_written_down_and_the_true_one_is_taken(place):
    weights = weights_of(module_of(place.study))
    place.hub.publish(GlobalModel(3, weights, final=True, study_digest=place.digest))
    chunk = next((place.folder / "share" / "glob").rglob("c/*"))
    true = chunk.read_bytes()
    chunk.write_bytes(true[:-1] + bytes([true[-1] ^ 1]))
    taking = threading.Thread(
        target=lambda: hospital.take_part(place.folder / "site.yaml", accept=place.digest), daemon=True
    )
    taking.start()
    lines = wait_for(lambda: written(place.folder / "runs", "hub refused"))
    assert [line["site"] for line in lines] == ["north"]
    assert "the hub's model is refused: chunk 1 of 1 does not have the digest" in lines[0]["reason"]
    chunk.write_bytes(true)
    taking.join(PATIENCE_S)
    assert not taking.is_alive()
    assert len(written(place.folder / "runs", "hub refused")) == 1
    assert RunFolder(next((place.folder / "runs").glob("tiny-*/"))).checkpoint("federated").exists()


@pytest.mark.parametrize("start", ["/dev/zero", "../secret", "{path: /dev/zero, least: 0.5}"])
def test_a_hub_that_names_a_file_of_this_site_as_the_start_is_refused_unread(tmp_path, start):
    """To compute the study's digest the file would be read, and /dev/zero has no end."""
    text = TINY + f"sites: [north, south]\nstart: {start}\n"
    site = SiteFile(name="north", data=str(tmp_path), exchange=Folder(url=str(tmp_path)))
    with pytest.raises(ExchangeError, match="the hub's study gives its start by a path"):
        parse_offer(text, "0" * 64, site)
