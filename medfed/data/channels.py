"""Which image of a case is which channel of the study: decided by name where a folder names its channels.

Two hospitals with T1 and FLAIR in different order have the same number of channels, and a model that trains
on both learns nothing without a word. A study therefore names its channels in its order
(`data.channels: [t1, flair]`), and each site's are chosen and ordered by their names: of folders (`t1/x`),
of files (`P-t1c`), of dataset.json, or of what the site's `layout` calls them. Names are compared by their
words, as those of classes are; nothing is equated, so that `t1` is not `T1w` unless the site file says so
(`channels: {T1w: t1}`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medfed.data.case import Case, first_path
from medfed.data.class_names import words_of
from medfed.data.index import Index
from medfed.data.layouts import is_image_word
from medfed.data.settings import Images
from medfed.errors import DataError

# Pictures and DICOM hold the colours red, green and blue in one file, always in this order.
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima")

# How the notes begin that nothing names the channels, and that their names have decided.
UNNAMED = "nothing in the folder names the channels of a case"
BY_NAME = "the channels are chosen and ordered by name"

_CURE = (
    "say in the site file which is which, such as channels: {OWN WORD: NAME}, or name them as the study does:"
    " in dataset.json, as the folders' or files' names, or by the site's `layout` (`{kind: pattern, image: "
    "{NAME: ...}}`, `{kind: dicom_tree, series: [{name: NAME, ...}]}`, `{kind: bids, channels: {NAME: ...}}`)"
)


def match_channels(index: Index, settings: Images) -> Index:
    """Return an index whose cases have the study's channels in the study's order, with a note on it.

    Raises:
        DataError: if the study counts channels that the folder names, the folder lacks one of the study's, or
            channels would have to be moved within a file.
    """
    wanted, own = settings.channel_names, index.channels
    if not own:
        return _noted(index, unnamed_note(index, wanted, settings.inputs))
    if not wanted:
        if len(own) > 1:
            raise DataError(
                f"the site's folder names its channels ({printable(own)}), and data.channels of the study is "
                f"{settings.inputs}, which says nothing of their order; name the channels in the study, such "
                f"as data.channels: [{printable(own)}]"
            )
        return index
    places = _places(own, wanted)
    if places == tuple(range(len(own))):
        return index
    cases = tuple(_ordered(case, places, len(own)) for case in index.cases)
    note = f"{BY_NAME}, as the study has them: {', '.join(wanted)}"
    return _noted(replace(index, cases=cases, channels=wanted), note)


def with_own_names(index: Index, own: Mapping[str, str]) -> Index:
    """Return an index whose channels have the study's names, where the site's word for one is in `own`."""
    known = {words_of(word): name for word, name in own.items()}
    return replace(index, channels=tuple(known.get(words_of(name), name) for name in index.channels))


def unnamed_note(index: Index, wanted: Sequence[str] = (), inputs: int = 0) -> str:
    """Return a note that nothing names the channels of a folder's cases, or '' where that needs no word.

    `inputs` is the number of channels if that is known; without it only files of their own are counted.
    """
    count = max((len(case.image) for case in index.cases), default=0)
    if index.channels or (count < 2 and (inputs < 2 or _are_pictures(index.cases)) and not wanted):
        return ""
    order = f"the study's ({', '.join(wanted)})" if wanted else "the same at every hospital"
    return (
        f"{UNNAMED}: they are taken in the order of the files' names, numbers or cells; make sure that it is "
        f"{order}"
    )


def printable(names: Sequence[str]) -> str:
    """Return names of channels as text; one that is no word of the field may be a name of the hospital's."""
    return ", ".join(name if is_image_word(name) else "another word" for name in names)


def _places(own: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Return where each channel of the study is among the folder's.

    Raises:
        DataError: if one is not there, or two of the folder's have the same words.
    """
    place_of: dict[str, int] = {}
    for place, name in enumerate(own):
        if place_of.setdefault(words_of(name), place) != place:
            raise DataError(
                f"the site's folder gives two channels the same name ({printable([name])}); {_CURE}"
            )
    lacking = [name for name in wanted if words_of(name) not in place_of]
    if lacking:
        raise DataError(
            f"the site's folder has no channel {' and no '.join(map(repr, lacking))} of the study "
            f"(data.channels: {', '.join(wanted)}); it names {printable(own)}; {_CURE}"
        )
    return tuple(place_of[words_of(name)] for name in wanted)


def _ordered(case: Case, places: Sequence[int], count: int) -> Case:
    """Return a case with the images at these places.

    Raises:
        DataError: if its channels lie in one file.
    """
    if len(case.image) == count:
        return replace(case, image=tuple(case.image[place] for place in places))
    if case.fault is not None:
        return case
    raise DataError(
        f"case {case.token}: its {count} channels lie in {len(case.image)} file, and the study has other "
        "ones or another order; store each channel in a file of its own, or in the study's order"
    )


def _noted(index: Index, note: str) -> Index:
    """Return an index with one more note, if it is one and not there yet."""
    return replace(index, notes=(*index.notes, note)) if note and note not in index.notes else index


def _are_pictures(cases: Sequence[Case]) -> bool:
    sources = [source for case in cases for source in case.image if source != ()]
    return all(first_path(source).name.lower().endswith(_PICTURES) for source in sources)
