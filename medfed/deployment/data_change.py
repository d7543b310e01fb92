"""Whether a hospital's data are still those with which it began a study, told and written down if not.

A site that is started again reads its folder anew. What it holds by then is used, as a correction of the data
may be meant; but nobody is to learn only from the report that another folder was mounted. So each case's
keyed digest (its content as the network sees it, label, target and split) is kept in the site's own state.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from pathlib import Path

import msgspec

from medfed.data.case import Case
from medfed.data.splits import SPLITS
from medfed.errors import DECODING_ERRORS, RunError
from medfed.evaluation.inference import SiteCases
from medfed.files import write_whole
from medfed.pipeline.seen_cases import contents_of

# In the folder of a site's own state in a run.
FILE = "data.json"

_DIGITS = 32


class DataState(msgspec.Struct, frozen=True):
    """The keyed digest of each case by its token, and what was told of changes since the study began."""

    cases: dict[str, str] = {}
    changes: tuple[str, ...] = ()


def record_data(folder: Path, hospital: SiteCases, when: str) -> tuple[DataState, str]:
    """Keep the digests of a hospital's cases in its state; return it, and how they differ from those before.

    The sentence is '' where nothing differs, or nothing was kept yet. It counts cases and names none.

    Raises:
        RunError: if what was kept is damaged.
    """
    path = folder / FILE
    known, now = _read(path), _digests(hospital)
    rows = not any(case.image for split in SPLITS for case in hospital.data.cases(split))
    sentence = "" if known is None else _difference(known.cases, now, rows=rows)
    told = () if known is None else known.changes
    state = DataState(now, (*told, f"{when}: {sentence}") if sentence else told)
    if state != known:
        write_whole(path, msgspec.json.encode(state), durable=True)
    return state, sentence


def _read(path: Path) -> DataState | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=DataState)
    except DECODING_ERRORS as error:
        raise RunError(
            f"{path.name}, by which changed data are noticed, is damaged ({error}); restore it from a "
            "back-up of the run folder, or delete it: the data that are there now then count as those before"
        ) from None


def _digests(hospital: SiteCases) -> dict[str, str]:
    data, contents = hospital.data, contents_of(hospital.data)
    cases = [case for split in SPLITS for case in data.cases(split)]
    return {case.token: _digest(hospital.secret, contents.get(case.token, b""), case) for case in cases}


def _digest(secret: bytes, content: bytes, case: Case) -> str:
    digest = hmac.new(secret, content, hashlib.sha256)
    digest.update(repr((case.split, case.target, sorted(case.attributes.items()))).encode())
    for name, path in (("", case.label), *case.masks):
        if path is not None and path.is_file():
            with path.open("rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_DIGITS]


def _difference(before: dict[str, str], now: dict[str, str], *, rows: bool = False) -> str:
    """Return how the cases differ, '' if they do not.

    With `rows`, a case of the same content under another token is neither new nor gone: the token of a row of
    a table depends on its line, which one more row above it changes.
    """
    both = {*before} & {*now}
    new, gone = (Counter(one[token] for token in {*one} - both) for one in (now, before))
    moved = (new & gone).total() if rows else 0
    counts = (
        (new.total() - moved, "new"),
        (gone.total() - moved, "gone"),
        (sum(before[token] != now[token] for token in both), "with another image, row, label or split"),
    )
    parts = [f"{number} {word}" for number, word in counts if number]
    if not parts:
        return ""
    return f"its data are not those with which it was here before ({len(before)} cases): {', '.join(parts)}"
