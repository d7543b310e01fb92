"""Loads a start into a network, and says tensor by tensor what was loaded, what starts anew, what was left.

Nothing is loaded in silence: by default every number of the network must be in the file with its name and
shape, and `least` says how far short of that a study bears (another number of classes needs another head).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import torch
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.files import percent_of
from medfed.models.pretrained.bundle import describe_bundle
from medfed.models.pretrained.names import Matching, match_names
from medfed.models.pretrained.source import find_source, weights_digest
from medfed.models.pretrained.tensors import read_tensors

if TYPE_CHECKING:
    from medfed.models.pretrained.settings import Start

# A tensor's name in messages; a file may hold any text as one.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
# How many of a block's tensors are named in its line; the rest is counted.
_NAMED = 4


class TensorLine(msgspec.Struct, frozen=True):
    """What became of one tensor: of the network (loaded, new) or of the file alone (left).

    name: the network's, or the file's of what was left.  shape: in the network, or in the file.  why: it is
    new or was left.
    """

    name: str
    what: Literal["loaded", "new", "left"]
    shape: tuple[int, ...]
    why: str = ""


class LoadedStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a study's network took from its start.

    share: of the network's numbers.  renamed: which prefix of the file's names became which, in words.
    bundle, licence, classes: as the bundle's metadata say, '' and () if they do not.
    """

    file: str
    sha256: str
    share: float
    renamed: str = ""
    bundle: str = ""
    licence: str = ""
    classes: tuple[str, ...] = ()
    tensors: tuple[TensorLine, ...] = ()

    @property
    def anew(self) -> tuple[str, ...]:
        """The names of the network's tensors that the start does not have."""
        return tuple(line.name for line in self.tensors if line.what == "new")

    def lines(self) -> list[str]:
        """Return it in words: the share, then a line per block of the network and of what was left."""
        of = f" ({self.bundle})" if self.bundle else ""
        licence = f", licence {self.licence}" if self.licence else ""
        head = f"starts from {self.file}{of}, SHA-256 {self.sha256[:12]}{licence}: {percent_of(self.share)} "
        first = head + "of the network's numbers are loaded" + (f"; {self.renamed}" if self.renamed else "")
        return [first, *_by_block(self.tensors)]


def load_start(network: nn.Module, start: Start, head: str = "") -> LoadedStart:
    """Load a start into a network, and return what was loaded; `head` is the path of its last layer.

    Raises:
        StudyError: if the file cannot be used, holds what is no number, or has less than `start.least` of the
            network.
    """
    source = find_source(start.path)
    found = read_tensors(source, start.part)
    _refuse_adapters(source.name, found)
    own = {name: one for name, one in network.state_dict().items() if one.is_floating_point()}
    floats = {name: one for name, one in found.items() if one.is_floating_point()}
    matching = match_names(_shapes(own), _shapes(floats), start.names)
    anew = _anew(network, [head if part == "head" and head else part for part in start.anew])
    lines = tuple(_lines(own, floats, matching, anew))
    loaded = {line.name: floats[matching.source[line.name]] for line in lines if line.what == "loaded"}
    _refuse_undefined(source.name, loaded)
    total = sum(tensor.numel() for tensor in own.values())
    # Numbers that the study itself starts anew are not missed.
    wanted = total - sum(tensor.numel() for name, tensor in own.items() if name in anew)
    taken = sum(tensor.numel() for tensor in loaded.values())
    if taken < start.least * wanted or not loaded:
        raise _too_little(source.name, lines, matching, start.least, taken / max(wanted, 1))
    with torch.no_grad():
        for name, tensor in loaded.items():
            own[name].copy_(tensor)
    described = describe_bundle(source)
    return LoadedStart(
        file=source.name,
        sha256=weights_digest(start.path),
        share=taken / max(total, 1),
        renamed=_renamed(matching),
        bundle=described.title,
        licence=described.licence,
        classes=described.classes,
        tensors=lines,
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _lines(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], matching: Matching, anew: set[str]
) -> Iterable[TensorLine]:
    for name, tensor in own.items():
        shape, source = tuple(tensor.shape), matching.source.get(name)
        if name in anew:
            yield TensorLine(name, "new", shape, "the study starts it anew")
        elif source is None:
            yield TensorLine(name, "new", shape, "is missing")
        elif tuple(found[source].shape) != shape:
            yield TensorLine(name, "new", shape, f"has shape {tuple(found[source].shape)}")
        else:
            yield TensorLine(name, "loaded", shape)
    used = {matching.source[name] for name in own if name in matching.source and name not in anew}
    for source in found:
        if source not in used:
            yield TensorLine(
                _plain(source), "left", tuple(found[source].shape), "the network has no such tensor"
            )


def _anew(network: nn.Module, parts: Sequence[str]) -> set[str]:
    """Return the names of the tensors in the parts that a study starts anew.

    Raises:
        StudyError: naming a part that the network does not have.
    """
    state = list(network.state_dict())
    names: set[str] = set()
    for part in parts:
        inside = {name for name in state if f".{part}." in f".{name}"}
        if not inside:
            raise StudyError(f"start.anew: the network has no part '{part}'; see `train.only` for its parts")
        names |= inside
    return names


def _refuse_adapters(name: str, found: Mapping[str, Tensor]) -> None:
    if any(".parametrizations." in key for key in found):
        raise StudyError(
            f"start: {name} is of a run with train.lora and holds adapters apart from the weights; export "
            "that run (medfed export --format bundle) and start from the bundle, in which they are merged"
        )


def _refuse_undefined(file: str, loaded: Mapping[str, Tensor]) -> None:
    for name, tensor in loaded.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StudyError(f"start: {file}: '{name}' holds NaN or infinity; it is damaged or diverged")


def _too_little(
    file: str, lines: Sequence[TensorLine], matching: Matching, least: float, share: float
) -> StudyError:
    missing = [line for line in lines if line.what == "new" and line.why != "the study starts it anew"]
    named = "; ".join(f"'{line.name}' {line.why}, here {line.shape}" for line in missing[:_NAMED])
    more = f"; and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    if least < 1:
        return StudyError(
            f"start: {file} has {percent_of(share)} of this study's network, and start.least is {least:g}: "
            f"{named}{more}; it is probably another network's, or its names differ (start.names)"
        )
    agree = "; nothing agrees, so it is probably another network's, or its names differ (start.names)"
    if any(line.what == "loaded" for line in lines):
        borne = max(int(share * 100) / 100, 0.01)
        agree = (
            f"; {percent_of(share)} agree; if that is meant (another number of classes), say so by "
            f"`start: {{path: ..., least: {borne:g}}}`"
        )
    return StudyError(f"start: {file} is of another network: {named}{more}{agree}")


def _renamed(matching: Matching) -> str:
    stripped, added = _plain(matching.stripped), matching.added
    if stripped and added:
        return f"'{stripped}' of its names is '{added}' here"
    return (
        f"'{stripped}' of its names is left out"
        if stripped
        else f"'{added}' goes before its names"
        if added
        else ""
    )


def _by_block(tensors: Sequence[TensorLine]) -> Iterable[str]:
    own = [line.name for line in tensors if line.what != "left"]
    depth = next((depth for depth in (1, 2) if len({_block(name, depth) for name in own}) > 1), 1)
    blocks: dict[tuple[str, str], list[TensorLine]] = {}
    for line in tensors:
        blocks.setdefault((line.what, _block(line.name, depth)), []).append(line)
    for (what, block), lines in blocks.items():
        number = f"{len(lines)} tensor{'s' * (len(lines) > 1)}"
        if what == "loaded":
            yield f"loaded: {block}: {number}"
            continue
        named = "; ".join(
            f"{line.name} {line.shape}" + (f", in the file it {line.why}" if "shape" in line.why else "")
            for line in lines[:_NAMED]
        )
        more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        yield f"{'new' if what == 'new' else 'left out of the file'}: {block}: {number} ({named}{more})"


def _block(name: str, depth: int) -> str:
    """Return the first parts of a tensor's name, of which a network's blocks are told apart."""
    return ".".join(name.split(".")[:depth])


def _plain(name: str) -> str:
    """Return a name from the file, or a note that it is none."""
    return name if not name or _NAME.fullmatch(name) else "(a name of other characters)"
