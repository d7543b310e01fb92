"""The bill of materials: which packages it lists, and what it says of each, by packages made for it."""

from __future__ import annotations

import hashlib
import importlib
import json
from importlib.metadata import distribution
from pathlib import Path

import pytest

from medfed.pipeline.dossier.sbom import bill_of_materials, installed_closure, licences

PACKAGES = {
    "alpha-tool": (
        "1.0", "License-Expression: Apache-2.0", ["Beta_Lib[fast]>=1", "absent", 'gamma; extra == "more"']
    ),
    "beta-lib": (
        "2.0+cpu", "License: BSD-3-Clause", ['delta; extra == "fast"', "wrong; python_version < '3'"]
    ),
    "gamma": ("3", "Classifier: License :: OSI Approved :: MIT License", ["beta-lib"]),
    "delta": ("4", "License: UNKNOWN", []),
    "wrong": ("5", "License: " + "a whole licence " * 20, []),
}  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, (version, licence, needs) in PACKAGES.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{licence}"]
        (folder / "METADATA").write_text(
            "\n".join([*lines, *(f"Requires-Dist: {one}" for one in needs)]) + "\n"
        )
        (folder / "RECORD").write_text(f"{name}/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


def test_the_closure_follows_requirements_extras_and_markers(installed: Path) -> None:
    result = installed_closure("alpha-tool", extras=("more",))
    assert {name: (one.required, sorted(one.needs)) for name, one in result.items()} == {
        "alpha-tool": (True, ["beta-lib", "gamma"]),
        "beta-lib": (True, ["delta"]),
        "delta": (True, []),
        "gamma": (False, ["beta-lib"]),
    }
    assert "gamma" not in installed_closure("alpha-tool", extras=())


def test_licences_are_what_a_package_states(installed: Path) -> None:
    assert {name: licences(distribution(name)) for name in PACKAGES} == {
        "alpha-tool": [{"expression": "Apache-2.0"}],
        "beta-lib": [{"license": {"name": "BSD-3-Clause"}}],
        "gamma": [{"license": {"name": "MIT License"}}],
        "delta": [],
        "wrong": [],
    }


def test_the_bill_holds_each_package_with_its_url_and_the_digest_of_its_record(installed: Path) -> None:
    packages = installed_closure("alpha-tool", extras=("more",))
    bill = bill_of_materials(packages, "2026-01-01T00:00:00+00:00", "alpha-tool")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["purl"] == "pkg:pypi/alpha-tool@1.0"
    beta = next(one for one in bill["components"] if one["name"] == "beta-lib")
    record = hashlib.sha256(b"beta-lib/__init__.py,,\n").hexdigest()
    assert beta == {
        "type": "library",
        "bom-ref": "pkg:pypi/beta-lib@2.0%2Bcpu",
        "name": "beta-lib",
        "version": "2.0+cpu",
        "scope": "required",
        "purl": "pkg:pypi/beta-lib@2.0%2Bcpu",
        "licenses": [{"license": {"name": "BSD-3-Clause"}}],
        "properties": [{"name": "medfed:record-sha256", "value": record}],
    }
    assert {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}["pkg:pypi/gamma@3"] == [
        "pkg:pypi/beta-lib@2.0%2Bcpu"
    ]
    later = bill_of_materials(packages, "2027-01-01T00:00:00+00:00", "alpha-tool")
    assert later["serialNumber"] == bill["serialNumber"]
    json.dumps(bill)


def test_medfeds_own_bill_has_what_it_always_needs() -> None:
    result = installed_closure()
    assert {name for name in ("torch", "monai", "pydicom", "numpy") if result[name].required} == {
        "torch", "monai", "pydicom", "numpy",
    }  # fmt: skip
    assert "pytest" not in result
