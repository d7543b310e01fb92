"""Names of segments and structures: known words stay, and two different names never become one.

A name tells classes apart, so `Lung_L` and `Lung_R` must stay different, and a name that says nothing safe
must still be the same in all files. Words of the field stay. Where a word does not, a keyed code of the whole
name stands for it: it tells only whether two names are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from medfed.data.deidentify.rules import WORDS

# Words that only names of structures have: sides, target volumes, and those of AAPM TG-263.
LABEL_WORDS = WORDS | frozenset(
    [
        "l",
        "r",
        "lt",
        "rt",
        "lft",
        "rgt",
        "bilat",
        "bilateral",
        "gtvp",
        "gtvn",
        "gtvt",
        "ctvp",
        "ctvn",
        "ctvt",
        "ptvp",
        "ptvn",
        "itv",
        "igtv",
        "ictv",
        "hrctv",
        "irctv",
        "boost",
        "plan",
        "ring",
        "shell",
        "prv",
        "avoid",
        "bag",
        "spinalcord",
        "cord",
        "canal",
        "core",
        "opticnrv",
        "opticnerve",
        "opticchiasm",
        "nrv",
        "chiasm",
        "cochlea",
        "larynx",
        "pharynx",
        "glottis",
        "supraglottis",
        "cricopharyngeus",
        "constrictor",
        "constrictors",
        "pharyngeal",
        "lips",
        "lip",
        "cavityoral",
        "lacrimal",
        "glnd",
        "gland",
        "glnds",
        "submand",
        "submandibular",
        "sublingual",
        "retina",
        "cornea",
        "brachialplex",
        "brachial",
        "plexus",
        "plex",
        "brachialplexus",
        "lad",
        "lca",
        "rca",
        "lmca",
        "atrium",
        "pericardium",
        "bowelbag",
        "smallbowel",
        "largebowel",
        "sigmoid",
        "ileum",
        "jejunum",
        "cecum",
        "appendix",
        "penile",
        "penilebulb",
        "bulb",
        "femoralhead",
        "femoral",
        "head",
        "humeralhead",
        "humeral",
        "seminalves",
        "seminalvesicle",
        "vesicle",
        "prostatebed",
        "bed",
        "parametrium",
        "vagina",
        "cervix",
        "hippocampus",
        "cerebellum",
        "cerebrum",
        "hypothalamus",
        "thalamus",
        "putamen",
        "pallidum",
        "amygdala",
        "ventricles",
        "brainstem",
        "pons",
        "medulla",
        "midbrain",
        "temporal",
        "frontal",
        "parietal",
        "occipital",
        "lobes",
        "body",
        "couch",
        "bolus",
        "artifact",
        "artefact",
        "necrotic",
        "enhancing",
        "core",
        "edema",
        "oedema",
        "tumour",
        "tumor",
        "mets",
        "metastases",
        "lesions",
        "nodules",
        "nodal",
        "nodes",
        "ln",
        "vertebrae",
        "costae",
        "rib",
        "ribs",
        "clavicle",
        "scapulae",
        "hips",
        "sacral",
        "iliac",
        "ilium",
        "bladder",
        "middle",
        "medial",
        "upper",
        "lower",
        "left",
        "right",
        "sup",
        "inf",
        "ant",
        "post",
        "lat",
        "med",
        "prox",
        "dist",
        "proximal",
        "distal",
    ]
)
CODE_DIGITS = 6


def clean_label(text: str, code: Callable[[str], str]) -> str:
    """Return a structure's name in known words; with the code of the whole name if a word is not known.

    `code` returns a keyed code. Case, spaces and punctuation make no difference between two names.
    """
    words = _words(text)
    if not words:
        return ""
    known = [word for word in words if _is_known(word)]
    if len(known) < len(words):
        known = [*(known or ["roi"]), code(" ".join(words))[:CODE_DIGITS].lower()]
    return " ".join(known)[-64:]


def _words(text: str) -> list[str]:
    """Return a name's words in lower case: `SpinalCord` is two, `GTVn1` is a word and a number."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    spaced = re.sub(r"([A-Za-z]{3,})(\d{1,3})(?![A-Za-z0-9])", r"\1 \2", spaced)
    return re.findall(r"[^\W_]+", spaced.lower())


def _is_known(word: str) -> bool:
    return word in LABEL_WORDS or re.fullmatch(r"\d{1,3}|\d{1,4}c?gy", word) is not None
