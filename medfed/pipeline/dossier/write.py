"""`medfed export RUN --dossier`: one page and its machine-readable files, in a folder or a zip."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec

from medfed.errors import RunError
from medfed.evaluation.report import templates
from medfed.files import private_files, private_folder, utc_now, write_whole
from medfed.pipeline.create_run import check_empty
from medfed.pipeline.dossier.collect import Sources, collect
from medfed.pipeline.dossier.manifest import discard, pack, verify_dossier, write_manifest
from medfed.pipeline.dossier.records import Dossier, Statements
from medfed.pipeline.dossier.sbom import bill_of_materials, installed_closure
from medfed.pipeline.dossier.verify import check_claims, page_made_by
from medfed.runs.folder import RunFolder
from medfed.study.reading import parse_yaml, read_text
from medfed.wire.signing import Identity

PAGE, CONTENT, SBOM = "dossier.html", "dossier.json", "sbom.cdx.json"

# The run's own files that a dossier holds as evidence; none is of single patients, and none names a folder.
EVIDENCE = ("study.json", "rows.jsonl", "rounds.jsonl", "audit.jsonl", "report.html")


def read_statements(path: Path) -> Statements:
    """Return what a person says of a model, from a YAML file with the keys of `Statements`.

    Raises:
        StudyError: with the line and the key that is wrong.
    """
    expected = "statements (keys such as intended_use, licence, contact)"
    return parse_yaml(read_text(path), path.name, Statements, expected)


@private_files()
def write_dossier(
    run: str | Path | RunFolder,
    out: str | Path,
    sources: Sources | None = None,
    identity: Identity | None = None,
) -> Path:
    """Write the dossier of a run's federated model to `out`, a folder or a .zip file, and return `out`.

    With an `identity` its manifest is signed, and the audit logs must bear certificates of its federation.

    Raises:
        RunError: if this is not a run folder, nothing was measured, or `out` exists.
        AuditError: if the run's audit log is not intact, contradicts the run or a hospital's own log, or
            went on while the dossier was written.
    """
    folder, out = run if isinstance(run, RunFolder) else RunFolder(Path(run)), Path(out)
    folder.read_facts()
    sources = sources or Sources()
    if out.suffix == ".zip" and out.exists():
        raise RunError(f"{out.name}: this file is there already; give another name for the dossier")
    if out.suffix != ".zip":
        check_empty(out, "give another folder for the dossier")
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "dossier"
        whole.mkdir()
        _write_files(folder, whole, sources, identity)
        # As its reader will: a run that went on meanwhile has a log that is newer than what is said of it.
        check_claims(whole, verify_dossier(whole).manifest)
        page_made_by(whole, page)
        private_folder(out.parent)
        try:
            if out.suffix == ".zip":
                pack(whole, out)
            else:
                shutil.copytree(whole, out, dirs_exist_ok=True)
        except BaseException:
            discard(out)  # a part would look like a dossier
            raise
    return out


def _write_files(folder: RunFolder, whole: Path, sources: Sources, identity: Identity | None) -> None:
    made = utc_now()
    try:
        packages = installed_closure()
    except PackageNotFoundError:
        raise RunError(
            "export --dossier: medfed is not installed as a package here, so the packages that it needs are "
            "not known; install it (pip install medfed) and run this again"
        ) from None
    dossier = collect(folder, sources, made, len(packages))
    for name in EVIDENCE:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, whole / name)
    bill = msgspec.json.encode(bill_of_materials(packages, made))
    write_whole(whole / SBOM, msgspec.json.format(bill, indent=1))
    write_whole(whole / CONTENT, msgspec.json.format(msgspec.json.encode(dossier), indent=2))
    write_whole(whole / PAGE, page(dossier, identity is not None))
    write_manifest(
        whole,
        study=dossier.digest,
        weights_sha256=dossier.weights.file.sha256,
        made=made,
        identity=identity,
    )


def page(dossier: Dossier, signed: bool) -> str:
    """Return the dossier's page for people."""
    return templates.render("dossier.html.jinja", dossier=dossier, signed=signed)
