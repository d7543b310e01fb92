"""A hospital's permission for a study's own code: each plug-in by name and digest, from its own copy.

The hub sends names and digests. What runs is the folder that the site file names, if the digest of its files
is the one that both the study and the site file state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from medfed.deployment.site_file import SiteFile
from medfed.errors import DeclinedError, StudyError
from medfed.registry import Kind, package_of, use_kinds
from medfed.study.plugins import Plugin, added_by
from medfed.study.reading import load_all, parse_study, plugins_in
from medfed.study.study import Study


def plugin_refusals(site: SiteFile, asked: Mapping[str, Plugin]) -> Iterator[str]:
    """Yield which of a study's plug-ins this hospital does not allow, and what to do about each."""
    for name, plugin in asked.items():
        allowed = site.plugins.get(name)
        if allowed is None:
            yield (
                f"the study runs the code of plug-in '{name}' ({plugin.digest}), which the site file does "
                "not allow; get its folder from the coordinator, read it, compare "
                "`medfed plugins digest FOLDER`, and write "
                f'plugins: {{{name}: {{path: FOLDER, digest: "{plugin.digest}"}}}}'
            )
        elif allowed.digest != plugin.digest:
            yield (
                f"the study runs the code of plug-in '{name}' of the digest {plugin.digest}, the site file "
                f"allows {allowed.digest} (plugins.{name}.digest); get and read the study's version, or ask "
                "the coordinator to take this one"
            )


def parse_allowed(text: str, name: str, site: SiteFile) -> Study:
    """Return a study of the hub's, with its plug-ins loaded from this hospital's own copies.

    Their kinds are those of this thread from here on.

    Raises:
        DeclinedError: naming each plug-in that the site file does not allow.
        StudyError: if the study cannot be read, or names a folder, which only a hospital's own file does.
    """
    for plugin, request in plugins_in(text, name).items():
        if request.path is not None or request.digest is None:
            raise StudyError(
                f"{name}: plugins.{plugin}: expected a digest and no path; ask the coordinator to offer the "
                "study with this version of medfed"
            )
    return parse_run_study(text, name, site)


def parse_run_study(text: str, name: str, site: SiteFile) -> Study:
    """Return the study in this hospital's own run folder, its plug-ins loaded as the site file allows them.

    Raises:
        DeclinedError: as `parse_allowed`.
    """
    asked = plugins_in(text, name)
    if reasons := list(plugin_refusals(site, asked)):
        listed = "\n  ".join(reasons)
        raise DeclinedError(f"this hospital does not allow code that the study runs:\n  {listed}")
    own = {
        plugin: Plugin(path=site.plugins[plugin].path, digest=request.digest)
        for plugin, request in asked.items()
    }
    added = added_by(load_all(own, "the site file").values())
    study = parse_study(text, name, added=added)
    use_kinds(added)
    return msgspec.structs.replace(study, plugins=own)


def other_packages(study: Study) -> list[str]:
    """Return the installed packages beside medfed of which a study uses kinds, with their versions."""
    found = {package_of(kind) for kind in _kinds_of(study)}
    return sorted(package for package in found if package is not None)


def _kinds_of(value: object) -> Iterator[Kind]:
    """Yield the kinds that a study's records hold."""
    if isinstance(value, Kind):
        yield value
    if isinstance(value, msgspec.Struct):
        value = [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _kinds_of(one)
