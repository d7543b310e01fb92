"""The report: its numbers are the rows', it asks nobody for anything, and it holds nobody's case."""

from __future__ import annotations

import html.parser
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from medfed.errors import RunError
from medfed.evaluation import histograms, report, rows
from medfed.evaluation.histograms import Bin
from medfed.evaluation.report.formatting import model_name
from medfed.evaluation.rows import Row

sys.path.insert(0, str(Path(__file__).parents[1]))
import fake_runs

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)


@pytest.fixture(scope="module", params=["segment", "classify"])
def run(request, tmp_path_factory):
    return fake_runs.write(tmp_path_factory.mktemp(request.param) / "run", request.param)


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    return fake_runs.write(tmp_path_factory.mktemp("segment-only") / "run", "segment")


class Page(html.parser.HTMLParser):
    """Tables as lists of cells' texts, and what the page would load or is called."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cell: list[str] | None = None
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "line", "circle", "rect", "polyline"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag in ("line", "circle", "rect", "polyline"):
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join("".join(self.cell or []).split()))
            self.cell = None

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.cell is not None and self.open[-1] != "text":
            self.cell.append(data)


def page_of(run):
    # Rendered from the rows that are there: making the rows again is test_nothing_of_a_patient's business.
    return Page(report.render(report.read_run(run)))


def test_the_headline_names_metric_interval_hospital_patients_and_the_best_single_hospital(segment):
    line = report.headline(segment)
    summary_rows = rows.read_rows(segment / "rows.jsonl")
    whole = [row for row in summary_rows if (row.site, row.split, row.metric) == ("west", "test", "dice")]
    whole = [row for row in whole if row.group is None and row.against is None]
    ours = next(row for row in whole if row.model == "federated")
    alone = max(row.value for row in whole if row.model.startswith("local:"))
    assert line.startswith(
        f"Federated model: Dice {ours.value:.2f} (95 % CI {ours.low:.2f} to {ours.high:.2f}) at west"
    )
    assert "16 patients" in line
    assert f"alone reaches {alone:.2f}" in line
    assert "\n" not in line


def test_the_tables_are_the_rows(run):
    result = {
        (r.model, r.site): r
        for r in rows.read_rows(run / "rows.jsonl")
        if r.metric in ("dice", "auroc") and r.split == "test" and r.group is None and r.against is None
    }
    matrix = next(table for table in page_of(run).tables if table[0][:2] == ["Model", "north"])
    names = {model_name(model): model for model, _ in result}
    sites = [heading.removesuffix("held out").strip() for heading in matrix[0][1:]]
    assert len(matrix) == 7
    for line in matrix[1:]:
        for site, cell in zip(sites, line[1:], strict=True):
            row = result[names[line[0]], site]
            # As on the first page: an interval whose ends would be the same number has a third decimal.
            digits = 3 if row.high - row.low < 0.05 else 2
            assert cell == f"{row.value:.{digits}f}{row.low:.{digits}f} to {row.high:.{digits}f}"


def test_sections_that_only_some_runs_have_hold_their_rows(segment, tmp_path):
    run = shutil.copytree(segment, tmp_path / "run")
    (run / "cases.jsonl").unlink()
    summary_rows = rows.read_rows(run / "rows.jsonl")
    ours = next(
        r
        for r in summary_rows
        if (r.site, r.model, r.metric, r.group, r.against) == ("north", "federated", "dice", None, None)
        and r.split == "test"
    )

    def like(value, **more):
        return msgspec.structs.replace(
            ours, value=value, low=value - 0.0101, high=value + 0.0101, note=None, **more
        )

    extra = [
        like(0.6123, model="without:north"),
        like(0.2034, against="without:north", p=0.0123),
        like(0.0456, site="west", against="without:north", p=0.5),
        like(0.8765, model="personal:north"),
        like(-0.0321, against="personal:north", p=0.25),
        like(-0.0789, site="west", against="unchanged", group="condition=noise of 10 %", p=0.001),
    ]
    rows.write(run / "rows.jsonl", [*summary_rows, *extra])
    text = report.render(report.read_run(run))
    tables = Page(text).tables
    left = next(table for table in tables if table[0][1:2] == ["Trained without it"])
    line = next(line for line in left if line[0] == "north")
    assert line[1] == "0.612 0.602 to 0.622"
    assert line[4:] == ["+0.203 +0.193 to +0.213", "0.012"]
    gave = next(table for table in tables if table[0][1].startswith("For west"))
    assert gave[0][1] == f"For west{ours.n} patients"  # a line each
    assert next(line for line in gave if line[0] == "north")[1] == "+0.046 +0.036 to +0.056"
    personal = next(table for table in tables if table[0][1:3] == ["Global", "Personalised"])
    assert next(line for line in personal if line[0] == "north")[2:] == [
        "0.876 0.866 to 0.887",
        "−0.032 −0.042 to −0.022",
        "0.25",
    ]
    robust = next(table for table in tables if table[0][0] == "Change")
    assert next(line for line in robust if line[0] == "Noise of 10 %")[1] == "−0.079 −0.089 to −0.069"
    # Groups of changed images are no subgroup of patients.
    assert not any("condition" in cell for table in tables for line in table for cell in line)
    assert "without:north" not in text


def test_an_interval_of_few_patients_is_marked_and_the_mark_explained_in_its_section(segment, tmp_path):
    run = shutil.copytree(segment, tmp_path / "run")
    (run / "cases.jsonl").unlink()
    plain = [
        row if row.value is None else msgspec.structs.replace(row, note=None)
        for row in rows.read_rows(run / "rows.jsonl")
    ]
    rows.write(run / "rows.jsonl", plain)
    assert "†" not in report.render(report.read_run(run))
    few = "of 4 patients, so likely too narrow"
    north = [
        msgspec.structs.replace(row, note=few)
        if (row.site, row.model, row.metric, row.against) == ("north", "federated", "msd_mm", None)
        else row
        for row in plain
    ]
    rows.write(run / "rows.jsonl", north)
    text = report.render(report.read_run(run))
    table = next(table for table in Page(text).tables if table[0][0] == "Measure")
    column = table[0].index("north")
    marked = [line[0] for line in table if any(cell.endswith("†") for cell in line)]
    assert marked == ["Mean surface distance mm"]
    assert next(line for line in table if line[0] == marked[0])[column].endswith("†")
    sections = text.split("<section ")
    assert [part[:30] for part in sections if "† Interval from fewer than ten" in part] == [
        'aria-labelledby="measures">\n<h'
    ]


def test_patients_of_hospitals_that_are_too_small_to_be_shown_are_counted_in_the_whole(tmp_path):
    run = fake_runs.write(tmp_path / "run", "segment", patients=8)
    kept = [c for c in rows.read_cases(run / "cases.jsonl") if c.site != "coast" or c.case[-1] in "012"]
    rows.write(run / "cases.jsonl", kept)
    text = report.write_report(run).read_text()
    shown = {r.site for r in rows.read_rows(run / "rows.jsonl") if r.split == "test" and r.value is not None}
    assert shown == {
        "all",
        "mean of hospitals",
        "north",
        "south",
        "west",
    }  # east covers coast, so that neither is all minus the others
    # Four hospitals of the study, one of three patients, and the one that took no part.
    assert f"<dt>patients at west, of all tested</dt><dd>8 of {3 * 8 + 3 + 8}</dd>" in text
    columns = {cell for table in Page(text).tables for cell in table[0]}
    assert "north" in columns
    assert not columns & {"coast", "east"}


def test_nothing_of_a_patient_is_in_the_page(run):
    text = report.write_report(run).read_text(encoding="utf-8")
    cases = rows.read_cases(run / "cases.jsonl")
    for mark in {case.case for case in cases} | {case.patient for case in cases}:
        assert mark not in text
    (run / "cases.jsonl").rename(run / "elsewhere")
    try:
        assert report.write_report(run).read_text(encoding="utf-8") == text
    finally:
        (run / "elsewhere").rename(run / "cases.jsonl")


def test_paths_in_the_study_stay_out_of_the_page(tmp_path):
    run = fake_runs.write(tmp_path / "run", "segment", patients=6)
    study = json.loads((run / "study.yaml").read_text())
    study["sites"] = {"north": "/hospital/secret-folder"}
    study["data"]["cache"] = {"path": "secret-cache"}
    study["data"]["extra"] = "C:\\secret-disk"
    (run / "study.yaml").write_text(json.dumps(study))
    assert "secret" not in report.write_report(run).read_text(encoding="utf-8")


def test_it_is_one_file_without_script_that_asks_nobody(run):
    page = page_of(run)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "video"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "action", "xlink:href"):
                assert value.startswith("#"), (tag, name, value)
    text = report.render(report.read_run(run))
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_same_run_gives_the_same_bytes(run):
    assert report.write_report(run).read_bytes() == report.write_report(run).read_bytes()


def test_it_can_be_read_without_eyes_and_without_a_mouse(run):
    page = page_of(run)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert targets[0] == "main"
    assert set(targets) <= set(ids)
    scrolls = [attributes for tag, attributes in page.tags if attributes.get("class") == "scroll"]
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolls)


def test_who_dropped_out_and_why_stands_in_the_report(segment):
    words = " ".join(" ".join(page_of(segment).words).split())
    assert "coast Rounds 3 to 4: absent: did not answer before the deadline" in words
    assert "east Round 5: refused: update of site 'east' for round 5: 'net.0.weight' is not finite" in words
    assert "6 of 8" in words


def test_what_a_person_must_still_write_is_marked(segment):
    words = " ".join(" ".join(page_of(segment).words).split())
    assert "CLAIM 2024" in words
    assert "TRIPOD+AI" in words
    assert words.count("to be written by a person") > 10
    assert "Intended use to be written by a person" in words


def test_limits_say_what_was_not_done(tmp_path):
    run = fake_runs.write(tmp_path / "run", "segment", patients=6)
    about = json.loads((run / "run.json").read_text())
    about["held_out"] = []
    (run / "run.json").write_text(json.dumps(about))
    words = " ".join(page_of(run).words)
    assert "No hospital was held out" in words
    assert "No privacy mechanism" in words
    assert "Nothing here shows benefit or safety in care" in words


def test_a_name_that_is_markup_is_shown_and_not_run(tmp_path):
    run = fake_runs.write(tmp_path / "run", "segment", patients=6)
    lines = (run / "rounds.jsonl").read_text().replace("did not answer", "<script>alert(1)</script>")
    (run / "rounds.jsonl").write_text(lines)
    about = json.loads((run / "run.json").read_text())
    about["study"] = '"><img src=x onerror=alert(1)>'
    (run / "run.json").write_text(json.dumps(about))
    page = page_of(run)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}


def test_a_run_with_rows_alone_still_has_a_report(tmp_path):
    row = Row(
        round=1,
        site="north",
        split="val",
        model="federated",
        metric="dice",
        value=0.5,
        n=3,
        structure="lesion",
    )
    rows.write(tmp_path / "rows.jsonl", [row])
    page = page_of(tmp_path)
    assert "Dice 0.50 at north, in 3 patients, validation split." in report.headline(tmp_path)
    assert page.tables


def test_curves_that_would_show_the_bins_and_not_the_model_are_not_drawn(tmp_path):
    """One bin of five patients hides all their ranks: any area from 0 to 1; two bins that
    part them hide none.
    """
    run = fake_runs.write(tmp_path / "run", "classify")
    path = run / "curves.jsonl"
    every = histograms.read(path)
    for bins, drawn in (
        ((Bin(0, 1, 3, 2, 2.5),), False),
        ((Bin(0, 0.5, 0, 2, 0.5), Bin(0.5, 1, 3, 0, 2.5)), True),
    ):
        rows.write(path, [msgspec.structs.replace(one, bins=bins) for one in every])
        text = " ".join(page_of(run).words)
        assert ("ROC curve." in text) == drawn
        assert ("allows any area under the ROC curve from 0.000 to 1.000" in text) != drawn


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"no rows\.jsonl in this folder; give the folder of a finished run"):
        report.write_report(tmp_path)
    rows.write(tmp_path / "rows.jsonl", [])
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(RunError, match=r"rounds\.jsonl: line 1 is not a round"):
        report.write_report(tmp_path)


def test_a_resumed_round_counts_once(tmp_path):
    run = fake_runs.write(tmp_path / "run", "segment", patients=6)
    text = (run / "rounds.jsonl").read_text()
    before = report.write_report(run).read_text(encoding="utf-8")
    (run / "rounds.jsonl").write_text(text + text.splitlines()[-1] + "\n" + '{"round": 99, "si')
    assert report.write_report(run).read_text(encoding="utf-8") == before


# Each reason why there is no browser is said, so that a skipped test is not taken for a passed one.
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"
)


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            # The browser itself would ask for the time; no name resolves here, so nothing can leave at all.
            "--disable-features=NetworkTimeServiceQuerying",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HOME": str(folder)},
    )


def asked_by_the_page(log: Path) -> int:
    """Return how many requests a page made; what the browser asks on its own account has no origin."""
    initiators = re.findall(r'"initiator":"([^"]+)"', log.read_text())
    return sum(initiator != "not an origin" for initiator in initiators)


@pytest.mark.slow
@needs_chromium
def test_a_request_of_a_page_would_be_seen(tmp_path):
    page, log = tmp_path / "page.html", tmp_path / "net.json"
    page.write_text(
        '<img src="http://elsewhere.example/x.png"><link rel="stylesheet" href="https://fonts.example/a.css">'
    )
    chromium(tmp_path, f"--log-net-log={log}", "--dump-dom", page.as_uri())
    assert asked_by_the_page(log) == 2


@pytest.mark.slow
@needs_chromium
def test_chromium_opens_it_without_an_error_and_without_a_request(run, tmp_path):
    path = report.write_report(run)
    log = tmp_path / "net.json"
    result = chromium(
        tmp_path, "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom", path.as_uri()
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "CONSOLE" not in result.stderr
    assert not asked_by_the_page(log)
    # What the browser built has the same tables as what was written: nothing was dropped as malformed.
    assert Page(result.stdout).tables == Page(path.read_text(encoding="utf-8")).tables


@pytest.mark.slow
@needs_chromium
def test_it_prints(segment, tmp_path):
    out = tmp_path / "report.pdf"
    chromium(
        tmp_path, f"--print-to-pdf={out}", "--no-pdf-header-footer", report.write_report(segment).as_uri()
    )
    data = out.read_bytes()
    assert data.startswith(b"%PDF")
    # With the checklists, which are folded on a screen.
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20


# The width of an A4 sheet between its margins of 15 mm, in CSS pixels of 1/96 inch.
PAPER_PX = 680
WIDER = """<script>addEventListener("load", () => {
const wide = [...document.querySelectorAll("table, figure, svg, pre, p, dl")]
  .filter(one => one.getBoundingClientRect().right > %d.5).map(one => one.tagName + " " + one.className);
document.body.innerHTML = "<main id=wider>" + wide.join("; ") + "</main>";
});</script></body>"""


def wider_than_paper(folder: Path, text: str) -> str:
    """Return what is wider than a sheet in print: Chromium would shrink every page to it."""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", text)
    text = text.replace("@media print", "@media all").replace("@media screen", "@media speech")
    text = text.replace("<body>", f'<body style="width: {PAPER_PX}px">').replace("</body>", WIDER % PAPER_PX)
    page = folder / "paper.html"
    page.write_text(text, encoding="utf-8")
    dom = chromium(folder, "--window-size=1200,1500", "--dump-dom", page.as_uri()).stdout
    found = re.search(r'<main id="wider">(.*?)</main>', dom)
    assert found is not None
    return found[1]


@pytest.mark.slow
@needs_chromium
def test_no_table_is_wider_than_a_sheet_however_many_hospitals(run, tmp_path):
    """Fifteen hospitals with long names, and 60 rounds."""
    contents = report.read_run(run)
    names = [f"universitaetsklinikum-{index}" for index in range(15)]
    first = next(row.site for row in contents.rows if row.model == "federated" and row.value is not None)
    more = [
        msgspec.structs.replace(row, site=name)
        for name in names
        for row in contents.rows
        if row.site == first and row.model == "federated"
    ]
    lines = [
        msgspec.structs.replace(line, round=number, site=name)
        for number in range(1, 61)
        for name in names
        for line in contents.rounds[:1]
    ]
    text = report.render(contents._replace(rows=[*contents.rows, *more], rounds=[*contents.rounds, *lines]))
    assert text.count("universitaetsklinikum-14") > 1
    assert wider_than_paper(tmp_path, text) == ""


def test_the_first_page_keeps_an_interval_on_one_line_and_says_commands_as_code(segment):
    text = report.render(report.read_run(segment))
    brief = text[text.index('class="brief"') : text.index("</section>")]
    assert re.search(r'<span class="whole">\([\d.]+ to [\d.]+\)</span>', brief)
    card = text[text.index('id="card"') : text.index('id="again"')]
    assert "`" not in card
    assert "<code>medfed audit verify</code>" in card


def test_each_word_that_is_explained_leads_to_its_place_in_the_glossary(run):
    text = report.render(report.read_run(run))
    places = re.findall(r'<dt id="([^"]*)"', text)
    assert len(places) == len(set(places))
    linked = set(re.findall(r'<a class="term" href="#([^"]*)"', text))
    assert linked
    assert linked <= set(places)
