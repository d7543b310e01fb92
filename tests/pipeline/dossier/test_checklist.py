"""The checklists: what counts as evidence, and that nothing is ever called fulfilled."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from pipeline.dossier_run import dossier_run

from medfed.evaluation.report.templates import FOLDER
from medfed.pipeline.dossier.checklist import checklists, evidence, templates
from medfed.pipeline.dossier.collect import Sources, collect
from medfed.pipeline.dossier.records import Agreement, Answer, Dossier, LeakageFigure, Statements


@pytest.fixture(scope="module")
def dossier(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return collect(dossier_run(tmp_path_factory.mktemp("checklist") / "run"), Sources(), "2026", 7)


def answers(dossier: Dossier) -> dict[str, Answer]:
    return {f"{list_.name[:4]} {one.item}": one for list_ in checklists(dossier) for one in list_.items}


def test_each_template_uses_what_is_known(dossier: Dossier) -> None:
    used = {
        name
        for one in templates()
        for item in one.items
        for name in re.findall(r"{(\w+)}", item.evidence or "")
    }
    assert used <= set(evidence(dossier))
    assert [len(one.items) for one in templates()] == [14, 12, 25]


def test_no_word_claims_that_something_is_fulfilled(dossier: Dossier) -> None:
    page = "\n".join(path.read_text() for path in FOLDER.glob("dossier*")).lower()
    for word in ("compliant", "compliance", "complies", "certified", "conforms"):
        assert word not in page
    assert {one.status for one in answers(dossier).values()} == {"supports", "not covered by medfed"}


def test_without_statements_privacy_audit_or_approval_these_items_are_not_covered(dossier: Dossier) -> None:
    result = answers(dossier)
    for item in (
        "SATR 3.1.4",
        "SATR 3.3.5",
        "EHDS Article 53",
        "EHDS Article 73, downloads",
        "EU A 1(a)",
        "EU A 9",
    ):
        assert result[item].status == "not covered by medfed", item
    for item in ("SATR 3.3.3", "SATR 3.1.10", "EHDS Article 61(4)", "EU A 1(c)", "EU A 2(g)"):
        assert result[item].status == "supports", item
    assert result["EU A 1(c)"].evidence == "sbom.cdx.json: 7 packages with versions and licences"


def test_each_kind_of_evidence_supports_its_items(dossier: Dossier) -> None:
    more = msgspec.structs.replace(
        dossier,
        leakage=[LeakageFigure(site="north", protection="none", cases=1, recovered=3, chance=2)],
        agreements=[
            Agreement(site="north", study=dossier.digest, approved="2026"),
            Agreement(site="south", study=dossier.digest, approved="2026", revoked=True),
        ],
        statements=Statements(intended_use="Research", purpose="Permit 7", monitoring="Monthly"),
    )
    result = answers(more)
    assert result["SATR 3.1.4"].evidence == "the approvals of north, by digest"
    assert "leakage audits at north" in result["SATR 3.3.5"].evidence
    assert result["EHDS Article 53"].evidence == "stated by the exporter: Permit 7"
    assert result["EU A 1(a)"].evidence == "stated by the exporter: Research"
    assert result["EU A 9"].evidence.startswith("stated by the exporter: Monthly; `medfed watch-model`")


def test_without_a_log_the_log_supports_nothing(dossier: Dossier, tmp_path: Path) -> None:
    result = answers(msgspec.structs.replace(dossier, log=None, provenance=[]))
    for item in ("SATR 3.1.10", "EHDS Article 73, logs", "EHDS Article 61(2)"):
        assert result[item].status == "not covered by medfed", item


def test_groups_of_one_are_no_disclosure_control(dossier: Dossier) -> None:
    result = answers(msgspec.structs.replace(dossier, smallest_group=1))
    for item in ("SATR 3.3.3", "SATR 3.3.6", "SATR 3.3.7", "EHDS Article 61(3)"):
        assert result[item].status == "not covered by medfed", item
