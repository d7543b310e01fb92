"""A study file to typed objects: strict, and every error says where, what was found and what is allowed.

A study file says everything about a study; flags only say which one, where to write and how loudly. The types
below are the reference: a key that is not here is an error with the nearest name that is.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta

from medfed.aggregation import Rule
from medfed.aggregation.fedavg import FedAvg
from medfed.data.settings import AnyData, Images, Table
from medfed.errors import MedfedError, StudyError
from medfed.exchange import Exchange
from medfed.exchange.memory import Memory
from medfed.local_training import Local
from medfed.models.networks import Network
from medfed.models.optimisers import Optimiser
from medfed.models.optimisers.adamw import AdamW
from medfed.models.schedules import Schedule
from medfed.models.schedules.constant import Constant
from medfed.models.tasks import Task
from medfed.privacy import NoPrivacy, Privacy
from medfed.registry import Kind, broken_entry_points, kind_of, kinds, union
from medfed.wire.compression import Compression
from medfed.wire.update import OUTLIER

if TYPE_CHECKING:
    AnyTask = Task
    AnyNetwork = Network
    AnyRule = Rule
    AnyLocal = Local
    AnyExchange = Exchange
    AnyPrivacy = Privacy
    AnyCompression = Compression
    AnyOptimiser = Optimiser
    AnySchedule = Schedule
else:
    AnyTask, AnyNetwork, AnyRule = union("tasks"), union("networks"), union("aggregation")
    AnyLocal, AnyExchange, AnyPrivacy = union("local_training"), union("exchange"), union("privacy")
    AnyOptimiser, AnySchedule = union("optimisers"), union("schedules")
    AnyCompression = union("compression")

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
# A site's name becomes a folder, a subject and a certificate's name: letters, digits, '-' and '_', no
# path, no dot.
SiteName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


# A study of hundreds of sites has some tens of thousands of characters.
LARGEST_FILE = 1 << 20

_Record = TypeVar("_Record")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Lora(_Section, frozen=True, kw_only=True):
    """Low-rank adapters of every linear and convolutional layer, which alone are trained and exchanged.

    rank: r, the rows of an adapter's thin matrices.  alpha: what their product is multiplied by, over r.
    """

    rank: Count = 4
    alpha: Annotated[float, Meta(gt=0)] = 8.0


class Train(_Section, frozen=True, kw_only=True):
    """How each site trains, and how often the sites' weights are merged.

    rounds: how many merges.  epochs: E, the epochs each site trains between two merges.  steps: how
    many steps an epoch has at every site, passing over its cases again where they run out; one pass
    over them if null.
    batch: cases (or patches) a step.  accumulate: steps a gradient is summed over.  clip: the largest
    gradient norm, none if null.
    keep_local: what stays in the hospital: `norm` is FedBN, `head` FedPer.  optimiser_state: `keep` the
    optimiser's moments at a merge (the default: one site alone then trains as without federation), or `reset`
    them, which costs no memory between a site's turns.  only: parts of the network, such as [output], that
    are trained and exchanged; all else stays as it began (see `start`).  lora: train and exchange adapters of
    the layers, and what `only` names.
    """

    rounds: Count
    epochs: Count = 1
    steps: Count | None = None
    batch: Count = 2
    accumulate: Count = 1
    optimiser: AnyOptimiser = AdamW()
    schedule: AnySchedule = Constant()
    precision: Literal[32, "16-mixed", "bf16-mixed"] = 32
    clip: Annotated[float, Meta(gt=0)] | None = None
    keep_local: tuple[str, ...] = ()
    optimiser_state: Literal["keep", "reset"] = "keep"
    only: tuple[str, ...] = ()
    lora: Lora | None = None
    local: AnyLocal | None = None


class Sampling(_Section, frozen=True, kw_only=True):
    """Who trains in a round, and whose update counts.

    fraction: the share of sites asked each round, drawn from the study's seed.  minimum: fewer answers than
    this stop the study; half of the sites, rounded up, if null.  deadline_s: seconds until a round goes on
    without who is late; no limit if null.  outlier: an update this many times as long as those of the same
    round is refused, and the round goes on; null leaves it to the rule.
    """

    fraction: Share = 1.0
    minimum: Count | None = None
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    outlier: Annotated[float, Meta(ge=10)] | None = OUTLIER


class Evaluation(_Section, frozen=True, kw_only=True):
    """What is measured at the end.

    temperature: report a classifier's probabilities after temperature scaling, fitted
    on its validation patients.
    robustness: also measure the federated model on its test cases changed a little:
    shifted, noisy, slices lost.
    local_models: also train every site's own model on its own cases with the same budget
    of epochs, and compare.
    pooled_model: also train one model on all sites' cases in one place, where one person holds them all (a
    simulation), and compare.
    draws: bootstrap draws of an interval.  tolerance_mm: of the surface Dice.  smallest_group: results of
    fewer patients than this are withheld.
    """

    local_models: bool = True
    pooled_model: bool = True
    robustness: bool = True
    temperature: bool = False
    draws: Count = 1000
    tolerance_mm: Annotated[float, Meta(gt=0)] = 2.0
    smallest_group: Count = 5


class SiteOverride(_Section, frozen=True, kw_only=True):
    """What one hospital does otherwise, because it has fewer cases, less memory or less time.

    epochs: its own E.  batch: its own batch.  All hospitals merge as often; rule `fednova` makes up for their
    taking different numbers of steps.
    """

    epochs: Count | None = None
    batch: Count | None = None


class Study(_Section, frozen=True, kw_only=True):
    """One study, whole.

    sites: the hospitals that train, each with its folder (or CSV file).  held_out: hospitals that take no
    part and on which the final models are compared. Across hospitals (`medfed hub`) a list of names is
    enough: where each one's data lie is in its own site file, and those held out take part to measure the
    final model.  compress: what makes an update smaller on its way to the hub, one method after the other,
    such as [{kind: top_k, share: 0.01}, {kind: int8}]; what rounding left out is added the next round.
    site_overrides: what single hospitals do otherwise.  start: a checkpoint whose weights the study begins
    with, such as another run's checkpoints/federated.ckpt.
    """

    name: SiteName
    task: AnyTask
    network: AnyNetwork
    data: AnyData
    train: Train
    sites: dict[SiteName, str | None] = {}
    held_out: dict[SiteName, str | None] = {}
    site_overrides: dict[SiteName, SiteOverride] = {}
    seed: Annotated[int, Meta(ge=0)] = 0
    rule: AnyRule = FedAvg()
    sampling: Sampling = Sampling()
    privacy: AnyPrivacy = NoPrivacy()
    compress: tuple[AnyCompression, ...] = ()
    exchange: AnyExchange = Memory()
    evaluation: Evaluation = Evaluation()
    start: str | None = None

    @property
    def trained_only(self) -> bool:
        """Whether only what is trained is exchanged."""
        return bool(self.train.only) or self.train.lora is not None

    @property
    def keep_local(self) -> tuple[str, ...]:
        """What stays in the hospital, what the local method keeps included.

        `head` is the network's last layer, by its path in the LightningModule.
        """
        kept = self.train.local.kept() if self.train.local is not None else ()
        return tuple(self._layer(entry) for entry in (*self.train.keep_local, *kept))

    @property
    def local(self) -> Local | None:
        """The local method; where it speaks of the `head`, that is the network's last layer."""
        method = self.train.local
        head = getattr(method, "head", None)
        if method is None or head is None:
            return method
        return msgspec.structs.replace(method, head=self._layer(head))

    def _layer(self, name: str) -> str:
        return f"network.{self.network.head}" if name == "head" and self.network.head else name

    def at(self, site: str) -> Study:
        """Return the study as one hospital trains it: with its own number of epochs and batch,
        where it has one.
        """
        own = self.site_overrides.get(site)
        if own is None:
            return self
        changed = {key: value for key, value in msgspec.structs.asdict(own).items() if value is not None}
        return msgspec.structs.replace(self, train=msgspec.structs.replace(self.train, **changed))

    @property
    def minimum(self) -> int:
        """How many sites must answer a round."""
        return self.sampling.minimum or (len(self.sites) + 1) // 2

    @property
    def epochs(self) -> int:
        """How many epochs a site trains over all rounds."""
        return self.train.rounds * self.train.epochs


def resolved(study: Study) -> dict[str, Any]:
    """Return a study as plain values with every default written out."""
    return msgspec.to_builtins(study)


def digest(study: Study) -> str:
    """Return the SHA-256 of a resolved study, by which sites agree to it.

    Where each hospital's data lie is that hospital's own matter, so the folders don't count, only the sites'
    names. Nor does the exchange: which way a party takes to the hub is in its own file, and changes nothing
    of what is computed.
    """
    return hashlib.sha256(msgspec.json.encode(_agreed_on(study), order="sorted")).hexdigest()


def shared(study: Study) -> str:
    """Return the study file that the hub shows its sites: what they agree to, without anyone's folders."""
    return yaml.safe_dump(_agreed_on(study), sort_keys=False, allow_unicode=True)


def _agreed_on(study: Study) -> dict[str, Any]:
    plain = resolved(study)
    plain["sites"], plain["held_out"] = sorted(study.sites), sorted(study.held_out)
    del plain["exchange"]
    if study.start is not None:
        # What it holds counts, and not where a hospital keeps it.
        plain["start"] = start_digest(study.start)
    return plain


# How a study that came from a hub names the checkpoint it begins with: by the SHA-256 of the file.
_SHA256 = re.compile(r"[0-9a-f]{64}")


def start_digest(start: str) -> str:
    """Return the SHA-256 of the checkpoint that a study begins with: of its file, or as a study from
    a hub says it.
    """
    return start if _SHA256.fullmatch(start) else hashlib.sha256(Path(start).read_bytes()).hexdigest()


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study file, for editors."""
    made = msgspec.json.schema(Study)
    for key in _LISTED:
        keys = made["$defs"]["Study"]["properties"][key]
        names = {"type": "array", "items": keys["propertyNames"]}
        made["$defs"]["Study"]["properties"][key] = {
            "anyOf": [{k: v for k, v in keys.items() if k != "default"}, names]
        }
    return made


# --------------------------------------------------------------------------------------------- reading a file


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Return the study in a YAML file; `overrides` are 'train.epochs=3'. Folders are relative to the file.

    Raises:
        StudyError: naming the file, the line and the key path, what was found, what is allowed, and the nearest name.
    """
    path = Path(path)
    study = study_of(read_text(path), path.name, overrides)
    folder = path.resolve().parent

    def absolute(sites: Mapping[str, str | None]) -> dict[str, str | None]:
        return {site: where and str((folder / where).resolve()) for site, where in sites.items()}

    start = None if study.start is None else str((folder / study.start).resolve())
    if start is not None and not Path(start).is_file():
        raise StudyError(
            f"{path.name}: start: there is no such file; give a checkpoint, relative to the study file"
        )
    return msgspec.structs.replace(
        study, sites=absolute(study.sites), held_out=absolute(study.held_out), start=start
    )


def study_of(text: str, name: str = "study.yaml", overrides: Sequence[str] = ()) -> Study:
    """Return the study that a text says, as `read_study` does; `name` is what errors call it."""
    study = record_of(text, name, Study, "a study (keys such as name, task, sites)", overrides)
    _agree(study, name)
    return study


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        StudyError: if there is none, with the nearest name that is there.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = (
            _nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        )
        raise StudyError(f"{path}: no such file{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as text: {type(error).__name__}") from None


def record_of(
    text: str, name: str, kind: type[_Record], expected: str, overrides: Sequence[str] = ()
) -> _Record:
    """Return the record of this kind that a YAML text says; a study file and a site file are read alike.

    Raises:
        StudyError: as `read_study`.
    """
    raw, lines = _parse(text, name, expected)
    for override in overrides:
        _override(raw, override)
    for key in _LISTED:
        if isinstance(raw.get(key), list):
            raw[key] = _named(raw[key], key, name, lines)
    return _convert(raw, name, lines, overrides, kind)


# Keys under which names alone may stand in place of names with folders.
_LISTED = ("sites", "held_out")


def _named(names: list[Any], key: str, name: str, lines: dict[tuple, int]) -> dict[Any, None]:
    for index, one in enumerate(names):
        place = f"{name}:{lines.get((key, index), '?')}: {key}"
        if not isinstance(one, str):
            raise StudyError(f"{place}: found {_found(one)}; expected a site's name")
        if one in names[:index]:
            raise StudyError(f"{place}: '{one}' is there twice")
    return dict.fromkeys(names)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (PyYAML reads 1e-3 as text), and no key twice (PyYAML keeps the
    last without a word).
    """


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key, _ in node.value:
        name = loader.construct_object(key)
        if name in seen:
            raise yaml.MarkedYAMLError(
                problem=f"'{name}' is there twice, first in line {seen[name]}", problem_mark=key.start_mark
            )
        seen[name] = key.start_mark.line + 1
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse(text: str, name: str, expected: str) -> tuple[dict[str, Any], dict[tuple, int]]:
    # A few names for what is repeated, each standing for many of the one before, would make a
    # short text endless.
    if len(text) > LARGEST_FILE:
        raise StudyError(f"{name}: {len(text)} characters; {expected} has at most {LARGEST_FILE}")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise StudyError(f"{name}: YAML's aliases (*name) are not read; write out what is meant")
        raw = yaml.load(text, Loader=_Loader)
        node = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise StudyError(f"{name}: it is nested too deeply to be {expected}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise StudyError(f"{name}{where}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{name}: expected {expected}, found {_found(raw)}")
    lines: dict[tuple, int] = {}
    _mark(node, (), lines)
    return raw, lines


def _mark(node: Any, path: tuple, lines: dict[tuple, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, str(key.value))] = key.start_mark.line + 1
            _mark(value, (*path, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _mark(value, (*path, index), lines)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise StudyError(f"--set {override}: expected key=value, such as train.epochs=3")
    place: Any = raw
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise StudyError(f"--set {override}: '{part}' holds {_found(place)}, no keys below it")
    try:
        place[parts[-1]] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise StudyError(f"--set {override}: '{value}' does not read as YAML") from None


# ----------------------------------------------------------------------------------------- errors with a cure


def _convert(
    raw: dict[str, Any], name: str, lines: dict[tuple, int], overrides: Sequence[str], kind: type[_Record]
) -> _Record:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `")
        path = _path(at.removesuffix("`"), raw)
        raise StudyError(_explained(message, path, raw, name, lines, overrides, kind)) from None
    except MedfedError as error:
        raise StudyError(f"{name}: {error}") from None


def _path(at: str, raw: Any) -> tuple:
    """Return `$.sites[...].x` as a tuple of keys; msgspec writes [...] where a dictionary's
    key was not named.
    """
    path: list[Any] = []
    for part in re.findall(r"\.([A-Za-z_]\w*)|\[(\d+|\.\.\.)\]", at):
        key = part[0] or part[1]
        path.append(int(key) if key.isdigit() else key)
    return tuple(path)


def _explained(
    message: str,
    path: tuple,
    raw: Any,
    name: str,
    lines: dict[tuple, int],
    overrides: Sequence[str],
    kind: type,
) -> str:
    unknown = re.search(r"unknown field `([^`]*)`", message)
    missing = re.search(r"missing required field `([^`]*)`", message)
    where = (*path, unknown[1]) if unknown else path
    shown = ".".join(str(part) for part in where)
    line = next((lines[where[:k]] for k in range(len(where), 0, -1) if where[:k] in lines), None)
    from_flag = any(f"{o.partition('=')[0].strip()}.".startswith(f"{shown}.") for o in overrides)
    place = (
        f"--set {shown}"
        if from_flag
        else f"{name}{f':{line}' if line else ''}{f': {shown}' if shown else ''}"
    )
    value = _at(raw, path)
    if unknown:
        allowed = _fields(path, raw, kind)
        return f"{place}: no such key{_nearest(unknown[1], allowed)}; there are {', '.join(allowed)}"
    if missing and missing[1] == "kind":
        return f"{place}: which kind? Write kind: and one of {', '.join(_kinds(path, raw, kind))}"
    if missing:
        return f"{place}: '{missing[1]}' is missing; it has no default"
    if path and path[-1] == "kind":
        allowed = _kinds(path[:-1], raw, kind)
        broken = _broken_entry_point(path[:-1], raw, kind, str(value))
        if broken:
            return f"{place}: {broken}"
        return f"{place}: no '{value}'{_nearest(str(value), allowed)}; there are {', '.join(allowed)}"
    if message.startswith(("Invalid enum value", "Invalid value")):
        allowed = _choices(path, raw, kind)
        told = f"{_nearest(str(value), allowed)}; there are {', '.join(allowed)}" if allowed else ""
        return f"{place}: found {_found(value)}{told}"
    return f"{place}: found {_found(value)}; {_plainly(message)}"


# msgspec's words for types, and a person's.
_WORDS = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`object`": "keys with values",
    "`array`": "a list",
    "`null`": "null",
}


def _plainly(message: str) -> str:
    message = re.sub(r", got (`[^`]*`|\d+)", "", message)
    for word, plain in _WORDS.items():
        message = message.replace(word, plain)
    message = re.sub(r"`([^`]*)`", _alternatives, message)
    message = message.replace(
        "matching regex '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'", "of letters, digits, '-' and '_'"
    )
    return message[:1].lower() + message[1:]


def _alternatives(match: re.Match) -> str:
    return " or ".join(_WORDS.get(f"`{word.strip()}`", word.strip()) for word in match[1].split("|"))


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"keys ({', '.join(map(str, list(value)[:4]))})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return repr(value)[:60]


def _at(raw: Any, path: tuple) -> Any:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _nearest(name: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _type_at(path: tuple, raw: Any, kind: type) -> Any:
    """Return the type that a record has at a key path, following the kinds that the file itself names."""
    here: Any = kind
    for depth, part in enumerate(path):
        record = _record(here, _at(raw, path[:depth]))
        if record is not None:
            fields = {field.name: field.type for field in msgspec.structs.fields(record)}
            here = fields.get(str(part))
        elif get_origin(_bare(here)) is dict:
            here = get_args(_bare(here))[1]
        elif get_args(_bare(here)):
            here = get_args(_bare(here))[0]
        else:
            return None
    return here


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> list[Any]:
    annotation = _bare(annotation)
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return [_bare(member) for member in get_args(annotation)] if is_union else [annotation]


def _record(annotation: Any, value: Any) -> Any:
    records = [m for m in _members(annotation) if isinstance(m, type) and issubclass(m, msgspec.Struct)]
    if len(records) == 1:
        return records[0]
    named = value.get("kind") if isinstance(value, dict) else None
    return next((record for record in records if record.__struct_config__.tag == named), None)


def _fields(path: tuple, raw: Any, kind: type) -> list[str]:
    record = _record(_type_at(path, raw, kind), _at(raw, path))
    return [] if record is None else sorted(field.encode_name for field in msgspec.structs.fields(record))


def _kinds(path: tuple, raw: Any, kind: type) -> list[str]:
    members = _members(_type_at(path, raw, kind))
    tags = [m.__struct_config__.tag for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct)]
    return sorted(str(tag) for tag in tags if tag)


def _broken_entry_point(path: tuple, raw: Any, kind: type, name: str) -> str | None:
    """Return why an installed package's kind of this name is not used; None if no package adds one."""
    members = _members(_type_at(path, raw, kind))
    folders = {member.folder for member in members if isinstance(member, type) and issubclass(member, Kind)}
    return next((why for f in folders if (why := broken_entry_points(f).get(name))), None)


def _choices(path: tuple, raw: Any, kind: type) -> list[str]:
    found: list[str] = []
    for member in _members(_type_at(path, raw, kind)):
        if get_origin(member) is Literal:
            found += [str(choice) for choice in get_args(member)]
    return found


# -------------------------------------------------------------------------------------------- what must agree


def _agree(study: Study, name: str) -> None:
    if not study.sites:
        raise StudyError(
            f"{name}: sites: names no site; a study needs at least one, such as\n  sites:\n    north: ../data/north"
        )
    both = sorted(set(study.sites) & set(study.held_out))
    if both:
        raise StudyError(
            f"{name}: '{both[0]}' is in sites and in held_out; a hospital that trains is not held out"
        )
    task, network = kind_of(study.task), kind_of(study.network)
    if study.task.needs not in study.network.serves:
        suited = sorted(n for n, record in kinds("networks").items() if study.task.needs in record.serves)  # type: ignore[attr-defined]
        raise StudyError(
            f"{name}: network.kind: '{network}' does not serve task '{task}'; there are {', '.join(suited)}"
        )
    wanted = Table if study.task.needs in ("table", "survival") else Images
    if not isinstance(study.data, wanted):
        raise StudyError(
            f"{name}: data.kind: task '{task}' learns from '{wanted.__struct_config__.tag}', "
            f"found '{type(study.data).__struct_config__.tag}'"
        )
    for words in study.privacy.objections(study):
        raise StudyError(f"{name}: {words}")
    _agree_privacy(study, name)
    _agree_rule(study, name)
    _agree_compress(study, name)
    _agree_local(study, name)
    _agree_sites(study, name)
    if study.minimum > len(study.sites):
        raise StudyError(
            f"{name}: sampling.minimum: {study.minimum} sites must answer, but the study has {len(study.sites)}"
        )


def _agree_privacy(study: Study, name: str) -> None:
    hidden, rule = not study.privacy.reveals_each_update, kind_of(study.rule)
    for scalar in study.rule.needs_scalars:
        if scalar not in study.privacy.filter_scalars({scalar: 0.0}):
            raise StudyError(
                f"{name}: rule.kind: '{rule}' needs each site's '{scalar}', which privacy '{kind_of(study.privacy)}' lets no "
                f"site tell; take a rule that needs no such number, such as fedavg"
            )
    if hidden and not study.rule.takes_a_sum:
        suited = sorted(n for n, record in kinds("aggregation").items() if _takes_a_sum(record))
        raise StudyError(
            f"{name}: rule.kind: '{rule}' compares the sites' single updates, which privacy "
            f"'{kind_of(study.privacy)}' hides from the hub; take a rule that needs only their sum, such as "
            f"{', '.join(suited)}"
        )
    if hidden and study.train.local is not None and study.train.local.sends:
        raise StudyError(
            f"{name}: train.local.kind: '{kind_of(study.train.local)}' sends more than an update, which privacy "
            f"'{kind_of(study.privacy)}' does not sum; take another one, or none"
        )
    fewest = study.privacy.fewest_sites()
    if fewest > study.minimum:
        raise StudyError(
            f"{name}: privacy.kind: '{kind_of(study.privacy)}' with these settings needs {fewest} sites a round, the study "
            f"goes on with {study.minimum}; set sampling.minimum to at least {fewest}"
        )


def _takes_a_sum(record: type) -> bool:
    try:
        return bool(record().takes_a_sum)
    except TypeError:  # it has settings without a default
        return False


def _agree_sites(study: Study, name: str) -> None:
    for site in study.site_overrides:
        if site not in study.sites:
            raise StudyError(
                f"{name}: site_overrides: '{site}' is not one of the study's sites{_nearest(site, sorted(study.sites))}; "
                f"there are {', '.join(sorted(study.sites))}"
            )
    known = {*study.sites, *study.held_out}
    for site in getattr(study.task, "labelled", {}):
        if site not in known:
            raise StudyError(
                f"{name}: task.labelled: '{site}' is not one of the study's sites{_nearest(site, sorted(known))}; there "
                f"are {', '.join(sorted(known))}"
            )


def _agree_local(study: Study, name: str) -> None:
    """Check that hub and sites do both halves of one method, where it has two."""
    rule, method = kind_of(study.rule), study.train.local
    found = kind_of(method) if method is not None else None
    if study.rule.needs_local and found not in study.rule.needs_local:
        raise StudyError(
            f"{name}: rule.kind: '{rule}' is the hub's half of a method whose other half trains the sites; add "
            f"train.local: {{kind: {study.rule.needs_local[0]}}}"
        )
    if method is not None and method.rules and rule not in method.rules:
        raise StudyError(
            f"{name}: train.local.kind: '{found}' is the sites' half of a method whose other half is the hub's; set "
            f"rule: {{kind: {method.rules[0]}}}, found '{rule}'"
        )


def _agree_asynchronous(study: Study, name: str) -> None:
    rule = kind_of(study.rule)
    if not isinstance(study.exchange, Memory):
        raise StudyError(
            f"{name}: rule.kind: '{rule}' merges late updates, which exchange '{kind_of(study.exchange)}' does not carry; "
            f"take exchange: {{kind: memory}}, or another rule, such as fedavg with sampling.deadline_s"
        )
    if not study.privacy.reveals_each_update:
        raise StudyError(
            f"{name}: rule.kind: '{rule}' merges updates of different rounds, which privacy "
            f"'{kind_of(study.privacy)}' cannot sum up in secret; take another rule, such as fedavg"
        )
    if study.sampling.fraction < 1:
        raise StudyError(
            f"{name}: sampling.fraction: with rule '{rule}' every site trains all the time; leave it at 1"
        )


def _agree_rule(study: Study, name: str) -> None:
    rule = kind_of(study.rule)
    sent = study.train.local.sends if study.train.local is not None else ()
    for group in study.rule.needs_groups:
        if group not in sent:
            suited = sorted(n for n, record in kinds("local_training").items() if group in record.sends)  # type: ignore[attr-defined]
            raise StudyError(
                f"{name}: rule.kind: '{rule}' merges the group '{group}', which no site of this study sends; add "
                f"train.local: {{kind: {suited[0] if suited else '...'}}}"
            )
    if study.rule.asynchronous:
        _agree_asynchronous(study, name)
    fewest = study.rule.fewest_sites()
    if fewest > study.minimum and study.rule.most_sites is None:
        raise StudyError(
            f"{name}: rule.kind: '{rule}' with these settings needs {fewest} sites a round, the study goes on with "
            f"{study.minimum}; set sampling.minimum to at least {fewest}"
        )


def _agree_compress(study: Study, name: str) -> None:
    if study.compress and not study.privacy.reveals_each_update:
        raise StudyError(
            f"{name}: compress: privacy '{kind_of(study.privacy)}' hides each update under what only the sum of all takes "
            f"off again, and a rounded one would not sum to it; leave compress out, or take another privacy"
        )
    for number, stage in enumerate(study.compress[:-1]):
        if not stage.chainable:
            after = kind_of(study.compress[number + 1])
            raise StudyError(
                f"{name}: compress: '{kind_of(stage)}' leaves no floats that '{after}' could shorten; let it be the last"
            )
