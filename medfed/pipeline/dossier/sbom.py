"""A bill of materials: the installed packages that medfed needs, as CycloneDX 1.6 JSON.

Names, versions and licences are those that each package states of itself (importlib.metadata). The digest of
a package's RECORD file, which lists the digest of each of its files, says which build is installed. They are
the packages of the machine where the bill is made. Specification: ECMA-424, cyclonedx.org.
"""

from __future__ import annotations

import hashlib
import platform
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The extras that medfed itself uses where they are installed; the others are for tests and documentation.
RUNTIME_EXTRAS = ("nats", "fast", "export", "privacy", "tables", "huggingface", "he", "flower", "nvflare")

# A licence that a package states in more characters is the licence's whole text.
MAX_LICENCE = 100

_CLASSIFIER = "License :: OSI Approved :: "


@dataclass
class Package:
    """An installed package, whether medfed needs it always, and the names of those that it needs."""

    name: str
    dist: Distribution = field(repr=False)
    required: bool
    needs: set[str] = field(default_factory=set)

    @property
    def version(self) -> str:
        """Its version."""
        return self.dist.version

    @property
    def purl(self) -> str:
        """Its package URL, such as pkg:pypi/torch@2.6.0%2Bcpu."""
        return f"pkg:pypi/{self.name}@{quote(self.version, safe='')}"


def installed_closure(root: str = "medfed", extras: tuple[str, ...] = RUNTIME_EXTRAS) -> dict[str, Package]:
    """Return the installed packages that `root` needs, itself included, by name.

    What is needed only with one of `extras` is not `required`; what is not installed is left out.

    Raises:
        PackageNotFoundError: if `root` itself is not installed.
    """
    name = str(canonicalize_name(root))
    packages = {name: Package(name, distribution(root), True)}
    for required, wanted in ((True, ()), (False, extras)):
        queue: list[tuple[str, tuple[str, ...]]] = [(str(canonicalize_name(root)), wanted)]
        seen = set()
        while queue:
            name, chosen = queue.pop()
            if (name, chosen) in seen:
                continue
            seen.add((name, chosen))
            for needed in _needs(packages[name].dist, chosen):
                other = str(canonicalize_name(needed.name))
                if other not in packages and (found := _installed(needed.name)) is not None:
                    packages[other] = Package(other, found, required)
                if other in packages:
                    packages[name].needs.add(other)
                    queue.append((other, tuple(sorted(needed.extras))))
    return dict(sorted(packages.items()))


def _needs(dist: Distribution, extras: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield what a package needs on this machine, with these extras of it."""
    for text in dist.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def licences(dist: Distribution) -> list[dict[str, Any]]:
    """Return a package's licence as CycloneDX has it: an SPDX expression, else the names that it states."""
    metadata = dist.metadata
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    name = metadata["License"].strip() if "License" in metadata else ""
    if name and name.upper() != "UNKNOWN" and "\n" not in name and len(name) <= MAX_LICENCE:
        return [{"license": {"name": name}}]
    classifiers = metadata.get_all("Classifier") or []
    names = [one.removeprefix(_CLASSIFIER) for one in classifiers if one.startswith(_CLASSIFIER)]
    return [{"license": {"name": one}} for one in names]


def bill_of_materials(packages: dict[str, Package], made: str, root: str = "medfed") -> dict[str, Any]:
    """Return the CycloneDX document of these packages, of which `root` is the one that is described.

    `made` is the time in UTC, as ISO 8601.
    """
    components = [_component(one) for name, one in packages.items() if name != root]
    content = "\n".join(f"{one.purl} {_record_digest(one.dist)}" for one in packages.values())
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Equal packages have an equal number, whenever the bill is made.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "timestamp": made,
            "component": {**_component(packages[root]), "type": "application"},
            "properties": [{"name": "medfed:python", "value": platform.python_version()}],
        },
        "components": components,
        "dependencies": [
            {"ref": one.purl, "dependsOn": sorted(packages[name].purl for name in one.needs)}
            for one in packages.values()
        ],
    }


def _component(package: Package) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "scope": "required" if package.required else "optional",
        "purl": package.purl,
    }
    if stated := licences(package.dist):
        component["licenses"] = stated
    if record := _record_digest(package.dist):
        component["properties"] = [{"name": "medfed:record-sha256", "value": record}]
    return component


def _record_digest(dist: Distribution) -> str:
    record = dist.read_text("RECORD")
    return hashlib.sha256(record.encode()).hexdigest() if record else ""
