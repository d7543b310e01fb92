"""`medfed export RUN --dossier`: one page and its machine-readable files, in a folder or a zip."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec

from medfed.errors import RunError
from medfed.evaluation.report import templates
from medfed.evaluation.report.formatting import coded
from medfed.evaluation.report.page import render
from medfed.evaluation.report.run import read_run
from medfed.evaluation.summarise import read_public_study
from medfed.files import private_files, private_folder, utc_now, write_whole
from medfed.pipeline.create_run import check_empty
from medfed.pipeline.dossier.collect import Sources, collect
from medfed.pipeline.dossier.manifest import discard, pack, verify_dossier, write_manifest
from medfed.pipeline.dossier.records import Dossier, Statements
from medfed.pipeline.dossier.sbom import bill_of_materials, installed_closure
from medfed.pipeline.dossier.verify import check_claims, check_derived, page_made_by
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.study.reading import parse_yaml, read_text
from medfed.wire.signing import Identity

PAGE, CONTENT, SBOM = "dossier.html", "dossier.json", "sbom.cdx.json"

# The run's own files that a dossier holds as evidence; none is of single patients, and none names a folder.
EVIDENCE = ("study.json", "rows.jsonl", "rounds.jsonl", "audit.jsonl", "curves.jsonl", "groups.jsonl")


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
        check_derived(whole)
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
    for name in EVIDENCE:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, whole / name)
    evidence = RunFolder(whole)
    evidence.write_facts(public_facts(folder))
    dossier = collect(folder, sources, made, len(packages), evidence)
    write_whole(evidence.report, render(read_run(whole)))
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


def public_facts(folder: RunFolder) -> RunFacts:
    """Return what run.json says, with a 1 for each small number of cases: they are shown as a bound."""
    facts, fewest = folder.read_facts(), read_public_study(folder.path).min_patients
    cases = {
        site: {split: number if number == 0 or number >= fewest else 1 for split, number in counts.items()}
        for site, counts in facts.cases.items()
    }
    return msgspec.structs.replace(facts, cases=cases)


def page(dossier: Dossier, signed: bool) -> str:
    """Return the dossier's page for people."""
    return templates.render("dossier.html.jinja", dossier=dossier, signed=signed, coded=coded)
