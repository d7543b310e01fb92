"""Matches the names of a file's tensors to those of a network.

Programs wrap a network before they save it (`module.` of DataParallel, `model.` or `net.` of Lightning), and
an encoder's own file lacks the prefix that the encoder has inside a larger network (`swinViT.`). So one
prefix of the file is replaced by one of the network, both possibly empty: the pair under which the most
numbers agree in name and shape. Below that, a name and a shape must agree exactly; nothing is broadcast,
cut or guessed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from medfed.errors import StudyError

Shapes = Mapping[str, tuple[int, ...]]

# The dotted parts that a prefix has at most.
_DEPTH = 3


class Matching(NamedTuple):
    """Which tensor of the file each of the network's is.

    stripped, added: the file's prefix, and the network's that stands in its place.  source: the file's name
    by the network's, also where the shapes differ.
    """

    stripped: str
    added: str
    source: dict[str, str]


def match_names(own: Shapes, found: Shapes, renamed: Mapping[str, str] | None = None) -> Matching:
    """Return the matching of a network's tensors with a file's.

    Args:
        own: shapes of the network's floating-point tensors, by name.
        found: those of the file's.
        renamed: parts of the file's names, of whole dotted segments, with what they are called here.

    Raises:
        StudyError: if two names of the file would become one, or a part to rename is in no name.
    """
    names = _rename(found, renamed or {})
    stripped, added = _best_prefixes(own, {name: found[source] for name, source in names.items()})
    source: dict[str, str] = {}
    for name, original in names.items():
        if name.startswith(stripped) and (here := added + name.removeprefix(stripped)) in own:
            source[here] = original
    return Matching(stripped, added, source)


def _rename(found: Shapes, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the file's names by what they are called after renaming."""
    names: dict[str, str] = {}
    unused = set(renamed)
    for original in found:
        dotted = f".{original}."
        for old, new in renamed.items():
            if f".{old}." in dotted:
                unused.discard(old)
                dotted = dotted.replace(f".{old}.", f".{new}." if new else ".")
        name = dotted[1:-1]
        if name in names:
            raise StudyError("start.names: two tensors of the file would have the same name here")
        names[name] = original
    if unused:
        raise StudyError(f"start.names: no tensor of the file has '{sorted(unused)[0]}' in its name")
    return names


def _best_prefixes(own: Shapes, found: Shapes) -> tuple[str, str]:
    """Return the file's prefix and the network's that goes in its place; ('', '') if nothing agrees."""
    by_rest: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in own:
        for prefix, rest in _splits(name):
            by_rest[rest].append((prefix, name))
    agreeing: Counter[tuple[str, str]] = Counter()
    named: Counter[tuple[str, str]] = Counter()
    for name, shape in found.items():
        for prefix, rest in _splits(name):
            for added, here in by_rest.get(rest, ()):
                named[prefix, added] += 1
                if own[here] == shape:
                    agreeing[prefix, added] += prod(shape) + 1
    # Where two pairs agree alike, the one that changes least.
    return max(
        named,
        key=lambda pair: (agreeing[pair], named[pair], -len(pair[0]) - len(pair[1]), pair),
        default=("", ""),
    )


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield a name's prefixes of whole parts, the empty one first, each with the rest."""
    parts = name.split(".")
    for depth in range(min(_DEPTH, len(parts) - 1) + 1):
        head = parts[:depth]
        yield "".join(f"{part}." for part in head), ".".join(parts[depth:])
