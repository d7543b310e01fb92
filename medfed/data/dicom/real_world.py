"""Real-world value mappings (PS3.3 C.7.6.16.2.11): values with units where no RescaleSlope gives them.

Of an image with a RescaleSlope the modality values stay what they always were. Where only a mapping is there
and it is the only one, it is used, and a flag says so; several mappings are alternatives, of which none is
chosen: the stored values are returned, with another flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements

# UCUM's code of Hounsfield units; a CT in other units is not in HU.
HOUNSFIELD = b"[hnsf'U]"


@dataclass(frozen=True, slots=True)
class RealWorldMapping:
    """A linear mapping of the stored values from `first` to `last`."""

    slope: float
    intercept: float
    first: float
    last: float
    units: bytes


def find_mapping(
    own: Elements, shared: Elements, header: Elements
) -> tuple[RealWorldMapping | None, tuple[str, ...]]:
    """Return the only mapping of an image without a rescale, and flags on mappings that it has.

    The arguments are the functional groups of a frame, those that all frames share, and the header.
    """
    if not any(tags.REAL_WORLD in part for part in (own, shared, header)):
        return None, ()
    found = next((items for part in (own, shared, header) if (items := part.items(tags.REAL_WORLD))), [])
    if not found:
        return None, ()
    mapping = _linear(found[0]) if len(found) == 1 else None
    return mapping, ("real_world_values",) if mapping else ("real_world_values_unused",)


def _linear(item: Elements) -> RealWorldMapping | None:
    slope, intercept = item.number(tags.REAL_SLOPE), item.number(tags.REAL_INTERCEPT)
    first, last = _bound(item, tags.REAL_FIRST), _bound(item, tags.REAL_LAST)
    if slope is None or intercept is None or first is None or last is None or slope == 0:
        return None  # a table, or damaged
    units = item.first(tags.UNITS_CODE).text(tags.CODE_VALUE)
    return RealWorldMapping(slope, intercept, first, last, units)


def _bound(item: Elements, tag: int) -> float | None:
    if tag not in item:
        return None
    raw, vr = item.raw(tag), item.where(tag)[2]
    if len(raw) == 2:
        return float(item.integers(tag, "h" if vr == b"SS" else "H")[0])
    values: Sequence[float] = item.numbers(tag) if len(raw) == 8 else ()
    return values[0] if len(values) == 1 else None
