"""The registry: what a module must define, and what an installed package can and cannot add."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from medfed import registry
from medfed.errors import RegistryError
from medfed.registry import FOLDERS, kinds

RULE = """
from medfed.aggregation import Rule
class {name}(Rule, frozen=True, tag="{tag}"):
    \"\"\"A rule of another package.\"\"\"
"""
STUDY = """
name: small
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet}
data: {kind: images}
train: {rounds: 1}
sites: {north: north}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Create a package of modules on sys.path, like a folder of the registry."""
    package = tmp_path / f"folder_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return package


def built_in(folder: Path) -> dict:
    importlib.invalidate_caches()
    return registry._built_in(importlib.import_module(folder.name), "aggregation")


def test_a_module_with_a_kind_of_its_name_is_listed_and_private_modules_and_packages_are_not(folder):
    (folder / "newest.py").write_text(RULE.format(name="Newest", tag="newest"))
    (folder / "_shared.py").write_text(RULE.format(name="Shared", tag="shared"))
    (folder / "inner").mkdir()
    (folder / "inner" / "__init__.py").touch()
    assert {name: record.__name__ for name, record in built_in(folder).items()} == {"newest": "Newest"}


@pytest.mark.parametrize(
    "source, tags",
    [
        (RULE.format(name="Newest", tag="latest"), "found 'latest' of 'aggregation'"),
        (RULE.format(name="Newest", tag="newest").replace(', tag="newest"', ""), "found 'Newest'"),
        ("x = 1", "found no kind"),
        ("from medfed.aggregation.fedavg import FedAvg", "found no kind"),
        (
            RULE.format(name="Newest", tag="newest") + RULE.format(name="Other", tag="other"),
            "found 'newest' of 'aggregation', 'other' of 'aggregation'",
        ),
        (
            RULE.format(name="Newest", tag="newest").replace(
                "aggregation import Rule", "models.losses import Loss as Rule"
            ),
            "found 'newest' of 'losses'",
        ),
    ],
    ids=["another tag", "no tag", "no kind", "only an import", "two kinds", "another registry"],
)
def test_a_module_without_its_kind_is_an_error_that_names_file_and_tags(folder, source, tags):
    (folder / "newest.py").write_text(source)
    with pytest.raises(RegistryError, match=rf"/newest\.py: .* the tag 'newest' of .* {tags}"):
        built_in(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_kind_is_frozen_and_named_after_its_file(folder):
    for name, record in kinds(folder).items():
        assert record.__module__ == f"medfed.{FOLDERS[folder].package}.{name}"
        assert record.__struct_config__.frozen
        assert registry.summary(record)


# ---- entry points

POINTS = {
    "works": ("works = outside_works:Works", RULE.format(name="Works", tag="works"), ""),
    "missing": (
        "missing = outside_nowhere:Missing",
        "",
        "ModuleNotFoundError: No module named 'outside_nowhere'",
    ),
    "raises": ("raises = outside_raises:Raises", "raise OSError('no licence')", "OSError: no licence"),
    "exits": ("exits = outside_exits:Exits", "raise SystemExit(3)", "SystemExit: 3"),
    "no_kind": ("no_kind = outside_no_kind:x", "x = 3", "it is no kind of the registry 'aggregation'"),
    "loss": (
        "loss = outside_loss:L",
        "from medfed.models.losses import Loss\nclass L(Loss, frozen=True, tag='loss'): ...",
        "it is no kind of the registry 'aggregation'",
    ),
    "renamed": (
        "renamed = outside_renamed:R",
        RULE.format(name="R", tag="other"),
        "its tag is 'other', expected the entry point's name 'renamed'",
    ),
    "fedavg": (
        "fedavg = outside_fedavg:F",
        RULE.format(name="F", tag="fedavg"),
        "medfed has a kind of this name in 'aggregation', which cannot be replaced",
    ),
    "twice": (
        "twice = outside_twice:T",
        RULE.format(name="T", tag="twice"),
        "several packages add a kind of this name; uninstall all but one",
    ),
    "undecodable": (
        "undecodable = outside_undecodable:U",
        RULE.format(name="U", tag="undecodable") + "    x: 'Nowhere' = None\n",
        "NameError: name 'Nowhere' is not defined",
    ),
}  # fmt: skip


def install(folder: Path, package: str, module: str, point: str, source: str) -> None:
    """Write the files that pip installs for a package with one entry point."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[medfed.aggregation]\n{point}\n")
    if source:
        (folder / f"{module}.py").write_text(source)


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site-packages")
    for name, (point, source, _) in POINTS.items():
        install(folder, f"outside-{name}", f"outside_{name}", point, source)
    install(folder, "outside-twice-again", "outside_twice", POINTS["twice"][0], "")
    (folder / "study.yaml").write_text(STUDY)
    return folder


def medfed(site_packages: Path, code: str) -> str:
    """Return the output of a process that has these packages installed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(site_packages)!r})\n{code}"],
        cwd=site_packages, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def listed(site_packages):
    return medfed(site_packages, "from medfed.cli import main; main(['kinds', 'aggregation'])")


def test_kinds_lists_a_kind_that_a_package_adds(listed):
    assert "  works                A rule of another package." in listed


@pytest.mark.parametrize("name", [name for name, point in POINTS.items() if point[2]])
def test_kinds_names_an_entry_point_that_is_not_used_and_why(listed, name):
    point, _, reason = POINTS[name]
    line = next(line for line in listed.splitlines() if f"the entry point '{point}'" in line)
    assert line.startswith("  warning: ")
    assert f"in 'medfed.aggregation' of the package 'outside-{name}" in line
    assert line.endswith(f" is not used: {reason}")
    assert name == "fedavg" or f"  {name}  " not in listed


BROKEN = [name for name, point in POINTS.items() if point[2] and name != "fedavg"]

TRAIN_EACH = """
import contextlib, io, json
from medfed.cli import main
outputs = {}
for name in NAMES:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        with contextlib.suppress(SystemExit):
            main(["train", "study.yaml", "--set", f"rule.kind={name}"])
    outputs[name] = output.getvalue()
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module")
def refusals(site_packages) -> dict[str, str]:
    """Return what `medfed train` prints for each broken plug-in, all in one process, which starts once."""
    return json.loads(medfed(site_packages, TRAIN_EACH.replace("NAMES", str(BROKEN))).splitlines()[-1])


@pytest.mark.parametrize("name", BROKEN)
def test_a_study_that_names_a_broken_plug_in_says_whose_and_why(refusals, name):
    assert refusals[name].startswith(f"medfed: --set rule.kind: the entry point '{POINTS[name][0]}' in ")
    assert refusals[name].rstrip().endswith(f" is not used: {POINTS[name][2]}")


def test_a_study_can_name_a_kind_that_a_package_adds(site_packages):
    code = """
import medfed
for name in ("works", "fedavg"):
    print(medfed.read_study("study.yaml", [f"rule.kind={name}"]).rule)
"""
    assert medfed(site_packages, code) == "Works()\nFedAvg()\n"
