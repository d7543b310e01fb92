"""A study's own code runs only where the site file allows it, from the hospital's own copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hospitals import STUDY

from medfed.cli import main
from medfed.deployment import site_service as hospital
from medfed.deployment.approvals import approve, describe_changes
from medfed.deployment.site_file import read_site
from medfed.deployment.study_page import OwnPart, describe
from medfed.errors import DeclinedError, StudyError
from medfed.exchange.folder import Folder
from medfed.pipeline.factory import module_of
from medfed.registry import NONE_ADDED, kinds, use_kinds
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.plugins import plugin_digest
from medfed.study.reading import read_study
from medfed.wire.update import GlobalModel
from medfed.wire.weights import weights_of

LOSS = '''\
from medfed.models.losses import Loss


class Mine(Loss, frozen=True, tag="mine"):
    """The mean absolute distance of probabilities from the label."""

    serves = ("segment",)

    def outputs(self, classes):
        return classes

    def build(self, *args):
        import torch

        def loss(outputs, target):
            return outputs.softmax(1)[:, :1].sub((target == 0).float()).abs().mean()

        return loss
'''


@pytest.fixture(autouse=True)
def nothing_stays_in_use():
    yield
    use_kinds(NONE_ADDED)


class Place:
    """A hub that offers a study with the plug-in `parts`, and the hospital north's own copy and site file."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        for owner in ("coordinator", "north"):
            parts = folder / owner / "parts"
            parts.mkdir(parents=True)
            (parts / "__init__.py").write_text("from .mine import Mine\n")
            (parts / "mine.py").write_text(LOSS)
        tiny = (
            STUDY.format(rounds=3).partition("sites:")[0].replace("lesion]}", "lesion], loss: {kind: mine}}")
        )
        study = folder / "coordinator" / "study.yaml"
        study.write_text(f"{tiny}sites: [north, south]\nplugins: [parts]\n")
        self.study = read_study(study)
        self.digest, self.code = study_digest(self.study), plugin_digest(folder / "coordinator" / "parts")
        self.hub = Folder(url=str(folder / "share"), poll_s=0.02).open_hub(self.digest, folder / "hub")
        self.hub.advertise_study(public_yaml(self.study), ["north"])
        use_kinds(NONE_ADDED)

    def site(self, more: str = "") -> Path:
        path = self.folder / "site.yaml"
        path.write_text(
            f"name: north\ndata: {self.data}\naccelerator: cpu\n"
            f"exchange: {{kind: folder, url: share, poll_s: 0.02}}\n{more}"
        )
        return path

    def allowed(self, digest: str = "") -> str:
        return f'plugins: {{parts: {{path: north/parts, digest: "{digest or self.code}"}}}}\n'


@pytest.fixture
def place(tmp_path, tiny):
    opened = Place(tmp_path, tiny / "north")
    yield opened
    opened.hub.close()


def test_a_site_without_the_code_refuses_by_name_and_says_what_to_do(place):
    with pytest.raises(
        DeclinedError, match=f"plug-in 'parts' \\({place.code}\\), which the site file"
    ) as caught:
        hospital.take_part(place.site(), accept=place.digest)
    line = f'write plugins: {{parts: {{path: FOLDER, digest: "{place.code}"}}}}'
    assert line in str(caught.value)
    assert "medfed plugins digest FOLDER" in str(caught.value)
    # The line that it gives is the one that helps.
    place.site(line.removeprefix("write ").replace("FOLDER", "north/parts") + "\n")
    assert read_site(place.folder / "site.yaml").plugins["parts"].digest == place.code


def test_its_refusal_reaches_the_hub_and_its_own_log_and_no_code_has_run(place):
    (place.folder / "north" / "parts" / "mine.py").write_text("raise SystemExit\n")
    with pytest.raises(DeclinedError, match="this hospital does not allow code that the study runs"):
        hospital.take_part(place.site())
    (arrival,) = place.hub.collect(1, ["north"], 30)
    assert str(arrival.error) == "site 'north', round 1: this hospital's policy does not allow the study"
    log = (place.folder / "runs" / f"tiny-{place.digest[:8]}" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["declined", "dropped out"]


def test_a_site_with_another_version_refuses_by_both_digests(place):
    with (place.folder / "north" / "parts" / "mine.py").open("a") as file:
        file.write("# mended\n")
    own = plugin_digest(place.folder / "north" / "parts")
    with pytest.raises(
        DeclinedError, match=rf"of the digest {place.code}, the site file allows {own} \(plugins\.parts"
    ):
        hospital.take_part(place.site(place.allowed(own)))


def test_a_copy_that_changed_since_it_was_allowed_is_refused(place):
    (place.folder / "north" / "parts" / "mine.py").write_text(LOSS + "# a night's work\n")
    with pytest.raises(
        StudyError, match=rf"site\.yaml: plug-in 'parts': its folder has .*expected {place.code}"
    ):
        hospital.take_part(place.site(place.allowed()))


def test_nothing_of_a_study_that_names_a_folder_is_used(place):
    text = public_yaml(place.study).replace(
        "  parts:\n", f"  parts:\n    path: {place.folder}/coordinator/parts\n"
    )
    place.hub.advertise_study(text, ["north"])
    with pytest.raises(StudyError, match=r"the hub's study: plugins\.parts: expected a digest and no path"):
        hospital.take_part(place.site(place.allowed()), accept=place.digest)


def test_the_page_names_the_code_and_does_not_promise_what_medfed_cannot_hold(place):
    shown = []
    with pytest.raises(StudyError, match="was not approved"):
        hospital.take_part(place.site(place.allowed()), ask=lambda words: bool(shown.append(words)))
    (page,) = shown
    assert f"Own code           plug-in 'parts': losses 'mine'\n                   {place.code}\n" in page
    assert "medfed cannot limit what it reads or sends" in page
    assert "a file path (by medfed; see Own code)" in page
    use_kinds(NONE_ADDED)
    plain = msgspec.structs.replace(
        place.study, plugins={}, task=kinds("tasks")["segment"](classes=("b", "l"))
    )
    assert "Own code" not in describe(OwnPart(plain, read_site(place.site())), "0")


def test_an_agreed_study_trains_with_the_hospitals_own_copy(place):
    weights = weights_of(module_of(place.study))
    place.hub.publish(GlobalModel(3, weights, final=True, study_digest=place.digest))
    shutil.rmtree(place.folder / "coordinator" / "parts")
    folder = hospital.take_part(place.site(place.allowed()), accept=place.digest)
    assert folder.read_facts().is_finished
    assert str(place.folder / "north" / "parts") in folder.study.read_text()
    assert "coordinator" not in folder.study.read_text()
    assert str(place.folder) not in folder.public_study.read_text()


def test_what_changed_is_told_though_the_former_code_is_gone(place, tmp_path):
    approve(tmp_path / "runs", place.study, "m.muster")
    parts = place.folder / "coordinator" / "parts"
    (parts / "mine.py").write_text(LOSS + "# version 2\n")
    changed = read_study(parts.parent / "study.yaml")
    told = describe_changes(tmp_path / "runs", changed)
    assert told.endswith(f'  plugins.parts.digest: "{place.code}" -> "{plugin_digest(parts)}"\n')


def test_check_says_that_the_site_file_lacks_the_code(place):
    result = CliRunner().invoke(
        main,
        ["check", "--site", str(place.site()), "--study", str(place.folder / "coordinator" / "study.yaml")],
    )
    assert "plug-in 'parts'" in " ".join(result.output.split())
    assert result.exit_code == 2


def test_a_site_file_names_kinds_of_what_it_allows(place):
    layout = (
        "from medfed.data.layouts import Layout\n\n\n"
        'class Ours(Layout, frozen=True, tag="ours"):\n    """How the cases lie in our archive."""\n'
    )
    parts = place.folder / "north" / "parts"
    (parts / "__init__.py").write_text("from .ours import Ours\n")
    (parts / "ours.py").write_text(layout)
    for given in ("ours", "{kind: ours}"):
        site = read_site(place.site(place.allowed(plugin_digest(parts)) + f"layout: {given}\n"))
        assert type(site.given_layout).__name__ == "Ours"
    assert "ours" not in kinds("layouts")
    with pytest.raises(StudyError, match="no 'ours'"):
        read_site(place.site("layout: ours\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plugins: {parts: {path: north/parts}}", r"site\.yaml:\d+: plugins.*'digest' is missing"),
        (
            'plugins: {parts: {digest: "sha256:%s"}}' % ("0" * 64),
            r"site\.yaml:\d+: plugins.*'path' is missing",
        ),
        ("plugins: [north/parts]", r"site\.yaml:\d+: plugins.*'digest' is missing"),
    ],
)
def test_a_site_file_gives_path_and_digest(place, line, message):
    with pytest.raises(StudyError, match=message):
        read_site(place.site(line + "\n"))
