"""The keys of a study and of a site file that say how images are read where several results are correct.

A study says how every site reads, because sites that read differently train on different data. A site may be
stricter, never laxer: it refuses what the study would resample or sort out. How much memory one image may
take is the site's own business, so its `max_bytes` goes before the study's. What padding means, and the unit
of PET, is the study's alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from medfed.data.read_options import Padding, Pet, Tilt, Uneven
from medfed.data.size_limits import MAX_VOLUME_BYTES

Bytes = Annotated[int, Meta(ge=1)]


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How every site reads its images; see `medfed.read`.

    padding: `air` replaces voxels that a DICOM header declares as padding by -1000 HU in CT, and by the
    smallest other value elsewhere; `nan` marks them, and the smallest value of the image replaces them.
    tilt: a CT with a tilted gantry is read with its sheared `affine`, put upright (`resample`), or a case is
    refused (`refuse`).  uneven: slices at uneven distances are refused (`refuse`) or interpolated onto an
    even grid (`resample`).  overlap: a label in which two classes share voxels is refused (`refuse`) or gives
    them to the class with the higher number (`later`).  pet: PET is read as stored (`stored`: Bq/ml, or
    counts; scanners differ) or as standardised uptake values by body weight, in g/ml (`suv`), corrected for
    decay. `suv` refuses a case without a PET series in DICOM, a series that lacks what SUV needs, and files
    without a modality (NIfTI, MHA, NRRD), whose unit is unknown.  max_bytes: the largest image that is read,
    in bytes as float32.
    """

    padding: Padding = "air"
    tilt: Tilt = "affine"
    uneven: Uneven = "refuse"
    overlap: Literal["refuse", "later"] = "refuse"
    pet: Pet = "stored"
    max_bytes: Bytes = MAX_VOLUME_BYTES


class SiteReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site reads differently from the study: more strictly, and with its own limit of memory.

    tilt, uneven, overlap: `refuse` leaves such cases out, whatever the study says.  max_bytes: the largest
    image that is read here, as float32, instead of the study's.
    """

    tilt: Literal["refuse"] | None = None
    uneven: Literal["refuse"] | None = None
    overlap: Literal["refuse"] | None = None
    max_bytes: Bytes | None = None

    def over(self, study: Reading) -> Reading:
        """Return how this site reads in a study."""
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(study, **own)
