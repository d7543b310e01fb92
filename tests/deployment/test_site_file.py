from __future__ import annotations

import stat
from pathlib import Path

import pytest

from medfed.deployment.site_file import checkpoint_s, read_site, secret_of
from medfed.errors import StudyError
from medfed.exchange.folder import Folder

SITE = """\
name: north
data: images
exchange: {kind: nats, credentials: credentials}
policy: {minimum_cases: 20}
"""


def write(folder: Path, text: str = SITE) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path):
    site = read_site(write(tmp_path))
    assert site.data == str(tmp_path / "images")
    assert site.secret == str(tmp_path / "secret")
    assert site.out == str(tmp_path / "runs")
    assert site.exchange.credentials == str(tmp_path / "credentials")
    assert (site.policy.minimum_cases, site.devices, site.accelerator) == (20, 1, "auto")


@pytest.mark.parametrize(
    "url, found", [("share", "{}/share"), ("/mnt/share", "/mnt/share"), ("s3://bucket/x", "s3://bucket/x")]
)
def test_a_folder_exchange_is_found_from_the_file_too(tmp_path, url, found):
    exchange = read_site(write(tmp_path, SITE.replace("kind: nats", f"kind: folder, url: '{url}'"))).exchange
    assert isinstance(exchange, Folder)
    assert exchange.url == found.format(tmp_path)


WRONG = {
    "unknown key": (SITE + "dat: x\n", r"site\.yaml:5: dat: no such key; did you mean 'data'\?"),
    "unknown kind": (
        SITE.replace("nats", "natz"),
        r"site\.yaml:3: exchange\.kind: no 'natz'; did you mean 'nats'\?; there are flower, folder, memory, "
        "nats, nvflare",
    ),
    "missing": (SITE.replace("data: images\n", ""), r"site\.yaml: 'data' is missing; it has no default"),
    "a path as name": (SITE.replace("north", "../north"), r"site\.yaml:1: name: found '\.\./north'"),
    "policy": (
        SITE.replace("minimum_cases", "minimum_case"),
        r"site\.yaml:4: policy\.minimum_case: no such key; did you mean 'minimum_cases'\?",
    ),
    "memory": (
        SITE.replace("nats, credentials: credentials", "memory"),
        r"exchange\.kind: 'memory' connects sites within one process",
    ),
    "no mapping": (
        "north\n",
        r"site\.yaml: expected a site \(keys such as name, data, exchange\), found 'north'",
    ),
}


@pytest.mark.parametrize("text, message", WRONG.values(), ids=WRONG.keys())
def test_an_error_says_where_and_what_is_allowed(tmp_path, text, message):
    with pytest.raises(StudyError, match=message):
        read_site(write(tmp_path, text))


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "here" / "secret"
    made = secret_of(path)
    assert len(made) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret_of(path) == made


@pytest.mark.parametrize(
    "mode, data, message",
    [
        (0o644, b"x" * 32, "its file has mode 0644"),
        (0o600, b"x" * 15, "its file holds 15 bytes, at least 16"),
    ],
)
def test_a_secret_that_is_none_is_refused(tmp_path, mode, data, message):
    path = tmp_path / "secret"
    path.write_bytes(data)
    path.chmod(mode)
    with pytest.raises(StudyError, match=message):
        secret_of(path)


@pytest.mark.parametrize(("text", "seconds"), [("", 600.0), ("0", 0.0), ("2.5", 150.0), ("null", None)])
def test_how_old_a_checkpoint_may_be_inside_a_round(tmp_path, text, seconds):
    key = f"checkpoint_minutes: {text}\n" if text else ""
    (tmp_path / "site.yaml").write_text(
        f"name: north\ndata: images\nexchange: {{kind: folder, url: share}}\n{key}"
    )
    assert checkpoint_s(read_site(tmp_path / "site.yaml")) == seconds


def test_a_site_names_its_own_headings(tmp_path):
    site = read_site(write(tmp_path, SITE + "columns: {age: Alter, patient: MRN}\n"))
    assert site.columns == {"age": "Alter", "patient": "MRN"}
