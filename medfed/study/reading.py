"""Reads a study or site file: YAML to typed records, with errors that give line and nearest name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from medfed.errors import MedfedError, StudyError
from medfed.registry import NONE_ADDED, AddedKinds, use_kinds, using_kinds
from medfed.study._explain import Lines, describe_value, explain, nearest
from medfed.study._own_kinds import as_original, with_kinds
from medfed.study._yaml import apply_override, load_yaml
from medfed.study.plugins import MAX_PLUGINS, LoadedPlugin, Plugin, PluginName, added_by, load_plugin
from medfed.study.start import with_bundle_network
from medfed.study.study import SiteName, Study
from medfed.study.validation import validate

# Keys under which a list of names may stand in place of names with folders.
LISTED_KEYS = ("sites", "held_out")

# The key under which a list of folders may stand in place of names with folders.
PLUGINS = "plugins"

# What a text should be, in errors.
_A_STUDY = "a study (keys such as name, task, sites)"

_Record = TypeVar("_Record")


def read_study(path: str | Path, overrides: Sequence[str] = (), *, needs_start: bool = True) -> Study:
    """Return the study in a YAML file; `overrides` are such as 'train.epochs=3'.

    Folders in the file are relative to the file; in the study they are absolute. The code of the study's
    `plugins` is imported, and their kinds are those of this thread until another study is read. Without
    `needs_start` the file that the study starts from may be gone: a trained model needs it no more.

    Raises:
        StudyError: naming the file, line and key, what was found, what is allowed, and the nearest name; or
            the plug-in, its file and line.
    """
    path = Path(path)
    text, folder = read_text(path), path.resolve().parent
    plugins = {
        name: _placed(name, plugin, folder, path.name)
        for name, plugin in plugins_in(text, path.name, overrides).items()
    }
    loaded = load_all(plugins, path.name)
    started = partial(_started, name=path.name, folder=folder, needs_start=needs_start)
    study = parse_study(text, path.name, overrides, added_by(loaded.values()), started)
    use_kinds(added_by(loaded.values()))

    def absolute(sites: Mapping[str, str | None]) -> dict[str, str | None]:
        return {site: data and str((folder / data).resolve()) for site, data in sites.items()}

    return msgspec.structs.replace(
        study,
        sites=absolute(study.sites),
        held_out=absolute(study.held_out),
        plugins={name: Plugin(path=plugins[name].path, digest=one.digest) for name, one in loaded.items()},
    )


def _started(study: Study, name: str, folder: Path, needs_start: bool) -> Study:
    """Return a study with the absolute path of its start, and the network of its bundle written out."""
    if (start := study.given_start) is not None:
        place = (folder / start.path).resolve()
        if needs_start and not place.exists():
            raise StudyError(
                f"{name}: start: no such file; give a checkpoint or bundle, relative to the study file"
            )
        study = study.starting_from(str(place))
    try:
        return with_bundle_network(study)
    except StudyError as error:
        raise StudyError(f"{name}: {error}") from None


def read_run_study(path: Path) -> Study:
    """Return the study that a run folder holds, as `read_study`; a run folder brings no code with it.

    Raises:
        StudyError: as `read_study`, and if a plug-in is said to be inside the run folder.
    """
    folder = path.resolve().parent
    for name, plugin in plugins_in(read_text(path), path.name).items():
        place = Path(plugin.path or "")
        inside = not place.is_absolute() or place.resolve().is_relative_to(folder)
        if inside or plugin.digest is None:
            raise StudyError(
                f"{path.name}: plugins.{name}: a run's code is not taken from the run folder, which may come "
                "from somebody else; give the absolute path of your own copy, and its digest"
            )
    return read_study(path, needs_start=False)


def use_study(study: Study) -> None:
    """Make the kinds of a study's plug-ins those of this thread, as reading the study has done.

    Raises:
        StudyError: if a plug-in is not where it was, or its files have changed.
    """
    use_kinds(added_by(load_all(study.plugins, "the study").values()))


def plugins_in(
    text: str, name: str, overrides: Sequence[str] = (), expected: str = _A_STUDY
) -> dict[str, Plugin]:
    """Return the plug-ins that a study or site file names, before any of its kinds is looked up.

    Raises:
        StudyError: naming the file, line and key.
    """
    raw, lines = _raw(text, name, expected, overrides)
    try:
        return msgspec.convert({"plugins": raw.get("plugins", {})}, _Plugins).plugins
    except msgspec.ValidationError as error:
        raise StudyError(explain(str(error), raw, name, lines, overrides, _Plugins)) from None


def plain_study(text: str, name: str) -> dict[str, Any]:
    """Return a study file's keys and values as they are, whether or not its kinds are known here.

    Raises:
        StudyError: if the text is no YAML mapping.
    """
    return load_yaml(text, name, _A_STUDY)[0]


class _Plugins(msgspec.Struct):
    plugins: Annotated[dict[PluginName, Plugin], Meta(max_length=MAX_PLUGINS)] = {}


class _Named(msgspec.Struct):
    name: SiteName


def study_name(text: str, name: str) -> str:
    """Return the name of the study in a YAML text whose other keys need not be valid.

    Raises:
        StudyError: if it has none that a study can have.
    """
    raw, lines = _raw(text, name, _A_STUDY, ())
    try:
        return msgspec.convert(raw, _Named).name
    except msgspec.ValidationError as error:
        raise StudyError(explain(str(error), raw, name, lines, (), _Named)) from None


def _placed(name: str, plugin: Plugin, folder: Path, file: str) -> Plugin:
    """Return a plug-in with its folder's path absolute."""
    if plugin.path is None:
        raise StudyError(f"{file}: plugins.{name}: has no path; name its folder, relative to the file")
    return msgspec.structs.replace(plugin, path=str((folder / plugin.path).resolve()))


def load_all(plugins: Mapping[str, Plugin], file: str) -> dict[str, LoadedPlugin]:
    """Return the plug-ins of a file, loaded from their absolute paths; errors begin with the file's name."""
    try:
        return {
            name: load_plugin(name, Path(plugin.path or ""), plugin.digest)
            for name, plugin in plugins.items()
        }
    except StudyError as error:
        raise StudyError(f"{file}: {error}") from error.__cause__


def parse_study(
    text: str,
    name: str = "study.yaml",
    overrides: Sequence[str] = (),
    added: AddedKinds = NONE_ADDED,
    completed: Callable[[Study], Study] = lambda study: study,
) -> Study:
    """Return the study in a YAML text; `name` is the file's name in errors.

    No code is loaded: `added` are the kinds of the plug-ins that it may name. `completed` fills in what other
    files say, before the study's parts are checked.
    """
    study = completed(parse_yaml(text, name, Study, _A_STUDY, overrides, added))
    with using_kinds(added):
        validate(study, name)
    return study


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        StudyError: if the file is missing, with the nearest name in its folder, or if it is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise StudyError(f"{path}: no such file{nearest(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as text: {type(error).__name__}") from None


def parse_yaml(
    text: str,
    name: str,
    record: type[_Record],
    expected: str,
    overrides: Sequence[str] = (),
    added: AddedKinds = NONE_ADDED,
) -> _Record:
    """Return a YAML text as a record of this type; a study file and a site file are read alike.

    `expected` says in errors what the text should be. `added` are the kinds of plug-ins that it may name.

    Raises:
        StudyError: as `read_study`.
    """
    raw, lines = _raw(text, name, expected, overrides)
    types = with_kinds(record, added)
    try:
        with using_kinds(added):
            result: _Record = as_original(msgspec.convert(raw, types))
    except msgspec.ValidationError as error:
        raise StudyError(explain(str(error), raw, name, lines, overrides, types)) from None
    except MedfedError as error:
        raise StudyError(f"{name}: {error}") from None
    return result


def _raw(text: str, name: str, expected: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Lines]:
    """Return a YAML text as plain values, with lists of names and folders as what they stand for."""
    raw, lines = load_yaml(text, name, expected)
    for override in overrides:
        apply_override(raw, override)
    for key in LISTED_KEYS:
        if isinstance(raw.get(key), list):
            raw[key] = _without_folders(raw[key], key, name, lines)
    if isinstance(raw.get(PLUGINS), list):
        raw[PLUGINS] = _named_by_folder(raw[PLUGINS], name, lines)
    elif isinstance(raw.get(PLUGINS), dict):
        raw[PLUGINS] = {
            key: {"path": one} if isinstance(one, str) else one for key, one in raw[PLUGINS].items()
        }
    return raw, lines


def _named_by_folder(folders: list[Any], file: str, lines: Lines) -> dict[str, Any]:
    """Return the plug-ins of a list of folders, each called as its folder."""
    named: dict[str, Any] = {}
    for index, folder in enumerate(folders):
        place = f"{file}:{lines.get((PLUGINS, index), '?')}: {PLUGINS}"
        if not isinstance(folder, str):
            raise StudyError(f"{place}: found {describe_value(folder)}; expected a package's folder")
        called = Path(folder).name
        if called in named:
            raise StudyError(f"{place}: two folders are called '{called}'; rename one of the packages")
        named[called] = {"path": folder}
    return named


def _without_folders(names: list[Any], key: str, file: str, lines: Lines) -> dict[Any, None]:
    for index, name in enumerate(names):
        place = f"{file}:{lines.get((key, index), '?')}: {key}"
        if not isinstance(name, str):
            raise StudyError(f"{place}: found {describe_value(name)}; expected a site's name")
        if name in names[:index]:
            raise StudyError(f"{place}: '{name}' occurs twice")
    return dict.fromkeys(names)
