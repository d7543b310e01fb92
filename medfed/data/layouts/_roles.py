"""Words in names of files and folders that say what an image is: a label, or a kind of image."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What a label is called: a file beside its image, or a folder of labels beside one of images.
_LABELS = """
label labels labelstr labelsva labelsts labelmap mask masks seg segs segmentation segmentations gt groundtruth
annotation annotations contour contours manual roi rois dseg lesion lesions
"""

# What an image is called: the modality, the weighting or a plain word.
_IMAGES = """
image images imagestr imagesva imagests imaging img imgs volume volumes scan scans data ct cta cbct ldct mr
mri
mra pet spect suv us t1 t1w t1n t1c t1ce t1gd t1post t1pre t1km t2 t2w t2f t2flair flair fl pd pdw dwi adc dce
swi asl b0 cxr xray dx mg
"""

LABEL_WORDS = frozenset(_LABELS.split())
IMAGE_WORDS = frozenset(_IMAGES.split())

# Folders of one mask per structure.
STRUCTURE_FOLDERS = frozenset({"segmentations", "masks", "labels", "structures", "rois"})

_SEPARATORS = re.compile(r"[\s_.\-]+")


def plain(word: str) -> str:
    """Return a word in lower case without separators: 'Ground_Truth' is 'groundtruth'."""
    return _SEPARATORS.sub("", word).lower()


def is_label_word(word: str) -> bool:
    """Whether a name is a word for labels."""
    return plain(word) in LABEL_WORDS


def is_role(word: str) -> bool:
    """Whether a name is a word for a kind of image."""
    return plain(word) in IMAGE_WORDS


def shared_name(name: str, roles: Sequence[str] | frozenset[str]) -> str:
    """Return what an image and its label have in common: the name without a role before or after it.

    'volume-7' and 'segmentation-7' share '7', 'img0007' and 'label0007' '0007', 'a_image' and 'a_seg' 'a'.
    """
    words = _SEPARATORS.split(name)
    if len(words) > 1 and plain(words[-1]) in roles:
        return name[: -len(words[-1])].rstrip("_-. ")
    if len(words) > 2 and plain("".join(words[-2:])) in roles:
        return name[: name.rfind(words[-2])].rstrip("_-. ")
    match = re.fullmatch(r"([A-Za-z]+)[-_. ]?(\d.*)", name)
    return match[2] if match and plain(match[1]) in roles else name
