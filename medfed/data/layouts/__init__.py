"""The folder layouts that hospitals have, one a file: how to recognise it, and how to list its cases.

To add one, write `data/layouts/<name>.py` with `is_<name>(folder) -> bool` and `<name>(folder, site_secret)
-> Found`, and put the pair into `LAYOUTS`, the surest sign first. A layout lists; `index.py` then assigns
splits and checks. Messages name a case by token and a row by number, never a path, a name or a cell: a table
without a heading line would leak its first patient.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medfed.data.layouts._layout import Found
from medfed.data.layouts.bids import bids, is_bids
from medfed.data.layouts.cases_csv import is_table, table
from medfed.data.layouts.class_folders import class_folders, is_class_folders
from medfed.data.layouts.decathlon import decathlon, is_decathlon
from medfed.data.layouts.dicom_tree import dicom_tree, is_dicom_tree
from medfed.data.layouts.paired import is_paired, paired

# The surest sign first: a table says what it is, a tree of DICOM files is what is left.
LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path, bytes], Found]], ...] = (
    (is_table, table),
    (is_decathlon, decathlon),
    (is_bids, bids),
    (is_paired, paired),
    (is_class_folders, class_folders),
    (is_dicom_tree, dicom_tree),
)
