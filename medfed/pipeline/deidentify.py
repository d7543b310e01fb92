"""`medfed deidentify`: copy a folder's DICOM images without what identifies the patients."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from medfed.pipeline.progress_bar import ProgressBar
from medfed.pipeline.secret_file import read_secret


def deidentify_folder(
    source: Path, target: Path, secret_file: Path | None, dates: str, descriptors: str, device: str
) -> None:
    """Write a folder's de-identified DICOM images, and print how many were written and what was left out."""
    from medfed.data.deidentify import Options, deidentify

    secret = read_secret(secret_file)
    options = msgspec.convert({"dates": dates, "descriptors": descriptors, "device": device}, Options)
    with ProgressBar() as bar:
        export = deidentify(
            source,
            target,
            site_secret=secret if secret is not None else secrets.token_bytes(32),
            options=options,
            on_progress=bar.update,
        )
    print(f"{export.files} files of {export.series} series and {export.patients} patients written")
    for reason, count in export.left_out:
        print(f"left out: {count} x {reason}")
    if secret is None:
        print("no --secret was given: a later export will give the same patients other identifiers")
    print("not checked: the pixels themselves. Heads can show a face; `medfed check` flags them")
