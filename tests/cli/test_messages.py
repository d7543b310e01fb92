"""`--json`: each command that prints a result prints one document of documented keys and nothing else."""

from __future__ import annotations

import errno
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.cli.error_handling import Commands
from medfed.cli.messages import WITHOUT_RESULT, answer, answer_nothing
from medfed.errors import DataError, DeclinedError
from medfed.files import utc_now
from medfed.registry import kinds
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.status import Status
from medfed.study.plugins import plugin_digest
from medfed.wire.audit_log import AuditLog, verify

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "json.md"


def leaves(group: click.Group, above: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        full = f"{above} {name}".strip()
        found |= leaves(command, full) if isinstance(command, click.Group) else {full: command}
    return found


COMMANDS = leaves(main)


def documented() -> dict[str, list[str]]:
    """The keys that the page lists for each command; 'as `x`' stands for those of x."""
    keys: dict[str, list[str]] = {}
    for name, text in re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE):
        same = re.match(r"as `([^`]+)`", text)
        outer = re.sub(r"\([^)]*\)", "", text).partition(";")[0].partition(":")[0]
        keys[name] = keys[same[1]] if same else re.findall(r"`(\w+)`", outer)
    return keys


def call(*words: object, **settings):
    return CliRunner().invoke(main, [*map(str, words)], **settings)


def result(*words: object, **settings):
    """The document of a command that succeeds, which alone is on standard output."""
    done = call(*words, "--json", **settings)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    """A finished run whose finding is 'Dice 0.9'."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.report.write_text("<html>")
    monkeypatch.setattr("medfed.evaluation.report.headline", lambda path, site=None: f"Dice 0.9 {site or ''}")
    monkeypatch.setattr("medfed.cli.commands.end_on_signals", lambda: None)
    monkeypatch.setattr("medfed.cli.train.end_on_signals", lambda: None)
    monkeypatch.setattr("medfed.cli.describe.end_on_signals", lambda: None)
    return folder


def of_run(run: RunFolder, headline: str = "Dice 0.9 "):
    plain = {"run": str(run.path), "headline": headline, "report": str(run.report)}
    return plain | {"rows": None, "table": None}


def logs(value):
    """A function that shows progress and prints, and returns a value."""

    def function(*_, progress=None, **__):
        if isinstance(progress, Progress):
            progress.log("a line of progress")
        print("printed by a library")
        return value

    return function


def test_a_command_that_prints_a_result_has_it_and_the_page_lists_its_keys():
    having = {name for name, one in COMMANDS.items() if any("--json" in two.opts for two in one.params)}
    assert {*COMMANDS} - having == {*WITHOUT_RESULT}
    listed = {name for name in documented() if " --" not in name}
    assert listed >= having
    assert {name for name in listed if name in COMMANDS} == having
    assert having == {*CASES}


def train(run, monkeypatch):
    monkeypatch.setattr("medfed.pipeline.train.train", logs(run))
    return ("train", "study.yaml"), of_run(run)


def hub(run, monkeypatch):
    monkeypatch.setattr("medfed.deployment.hub_service.run_study", logs(run))
    return ("hub", "study.yaml"), of_run(run)


def demo(run, monkeypatch):
    monkeypatch.setattr("medfed.pipeline.demo.demo", logs(run))
    return ("demo", run.path, "--no-open"), of_run(run)


def describe(run, monkeypatch):
    monkeypatch.setattr("medfed.deployment.hub_service.run_study", logs(run))
    plain = {"run": str(run.path), "table": str(run.table_one), "csv": str(run.table_one_csv)}
    return ("describe", "study.yaml", "--broker"), plain


def evaluate(run, monkeypatch):
    monkeypatch.setattr("medfed.pipeline.evaluate.evaluate", logs(run))
    monkeypatch.setattr("medfed.evaluation.report.own_values.own_values", lambda *_: ["case 1: 0.4"])
    return ("evaluate", run.path, "--data", "x", "--name", "west"), of_run(run, "Dice 0.9 west")


def report(run, monkeypatch):
    monkeypatch.setattr("medfed.pipeline.report.report_run", logs(run))
    return ("report", run.path), {"runs": [of_run(run)], "compared": None}


def predict(run, monkeypatch):
    monkeypatch.setattr("medfed.pipeline.predict.predict", logs(run.path))
    words = ("predict", run.path, "--data", "x", "--out", "y")
    return words, {"predictions": str(run.path), "guarantee": None}


def export(run, monkeypatch):
    monkeypatch.setattr("medfed.pipeline.export.export", logs(Path("out")))
    plain = {"exported": "out", "format": "onnx", "model": "federated"}
    return ("export", run.path, "--out", "out", "--format", "onnx"), plain


def new(run, monkeypatch):
    draft = SimpleNamespace(summaries=("north: 3 cases",), warnings=("few cases",))
    monkeypatch.setattr("medfed.pipeline.drafting.draft_study", logs(draft))
    monkeypatch.setattr("medfed.pipeline.drafting.write_draft", logs(None))
    plain = {"study": "ours.yaml", "summaries": ["north: 3 cases"], "warnings": ["few cases"]}
    return ("new", "ours.yaml", "north"), plain


def check(run, monkeypatch):
    table = run.path / "north.csv"
    lines = [f"p{number},{number / 7:.3f},{number % 2}" for number in range(40)]
    table.write_text("\n".join(["patient,a,y", *lines]) + "\n")
    return ("check", table), None


def make(run, monkeypatch):
    found = SimpleNamespace(cases=7, patients=6, withheld=1)
    for name in ("index.index_folder", "channels.match_channels", "fingerprint.fingerprint"):
        monkeypatch.setattr(f"medfed.data.{name}", logs(found))
    monkeypatch.setattr("medfed.data.label_naming.match_classes", lambda *_: (None, None))
    monkeypatch.setattr("medfed.data.fingerprint.to_json", lambda _: b"{}")
    out = run.path / "out.json"
    plain = {"fingerprint": str(out), "cases": 7, "patients": 6, "withheld": 1, "min_patients": 10}
    return ("fingerprint", "make", run.path, out), plain


def merge(run, monkeypatch):
    merged = SimpleNamespace(sites=2, patients=9, cases=11)
    monkeypatch.setattr("medfed.data.fingerprint.from_json", lambda _: None)
    monkeypatch.setattr("medfed.data.fingerprint.merge", lambda _: merged)
    monkeypatch.setattr("medfed.data.proposal.propose_settings", lambda *_, **__: {"patch": [8, 8, 8]})
    plain = {"sites": 2, "patients": 9, "cases": 11, "data": {"patch": [8, 8, 8]}}
    return ("fingerprint", "merge", run.report), plain


def purge(run, monkeypatch):
    monkeypatch.setattr("medfed.data.cache.purge", lambda place: 2 if place == run.path else 0)
    inner = {"folder": str(run.path / ".medfed" / "cache"), "cases": 0}
    monkeypatch.setattr(
        "medfed.data.cache_location.data_cache_folder", lambda data: data / ".medfed" / "cache"
    )
    return ("purge", run.path), {"deleted": [inner, {"folder": str(run.path), "cases": 2}]}


def deidentify(run, monkeypatch):
    done = SimpleNamespace(files=5, series=2, patients=1, left_out=(("no image", 3),))
    monkeypatch.setattr("medfed.data.deidentify.deidentify", logs(done))
    left_out = [{"reason": "no image", "count": 3}]
    plain = {"files": 5, "series": 2, "patients": 1, "left_out": left_out, "same_pseudonyms_later": False}
    return ("deidentify", "in", "out"), plain


def log_of(run: RunFolder) -> str:
    AuditLog(run.audit).write("sent", round=1)
    return verify(run.audit).head


def audit_verify(run, monkeypatch):
    plain = {"lines": 1, "head": log_of(run), "head_compared": False, "signed": 0, "signer": None}
    plain |= {"fingerprint": None, "issuer_checked": False, "merges": {}, "never_merged": [], "site_logs": {}}
    return ("audit", "verify", run.path), plain


def audit_export(run, monkeypatch):
    log_of(run)
    out = run.path / "audit.csv"
    return ("audit", "export", run.path, "--out", out), {"lines": 1, "out": str(out)}


def audit_ledger(run, monkeypatch):
    head, accounts = SimpleNamespace(lines=4, sha256="ab"), [SimpleNamespace(closed=one) for one in (0, 1)]
    opened = SimpleNamespace(head=lambda: head, accounts=lambda: accounts)
    monkeypatch.setattr("medfed.deployment.site_file.read_site", lambda _: SimpleNamespace(secret="s"))
    monkeypatch.setattr("medfed.deployment.site_file.secret_of", lambda _: b"s")
    monkeypatch.setattr("medfed.deployment.site_session.ledger_of", lambda *_: opened)
    plain = {"lines": 4, "head": "ab", "runs": 2, "open": 1, "adopted": None}
    return ("audit", "ledger", "site.yaml"), plain


def leakage(run, monkeypatch):
    from medfed.pipeline.leakage.findings import Findings, Inversion

    inverted = Inversion("none", 1, 0.75, 0.5, 0.25)
    found = Findings("a", "north", "segment", (inverted,), (), digest="ff")
    monkeypatch.setattr("medfed.pipeline.leakage.audit.audit", logs((found, Path("figure.png"))))
    one = {"privacy": "none", "cases": 1, "best": 0.75, "mean": 0.5, "chance": 0.25}
    plain = {"study": "a", "site": "north", "needs": "segment", "inverted": [one], "members": [], "notes": []}
    plain |= {"digest": "ff", "worst": 0.75, "figure": "figure.png", "gate": 0.8, "exceeded": False}
    return ("audit", "leakage", run.path, "--gate", "0.8"), plain


def approvals(run, monkeypatch):
    from medfed.deployment.approvals import Approval

    one = Approval("ab", utc_now(), "m.muster", revoked=False)
    settings = SimpleNamespace(secret="s", out="runs")
    monkeypatch.setattr("medfed.deployment.site_file.read_site", lambda _: settings)
    monkeypatch.setattr("medfed.deployment.approvals.approvals", lambda *_: [one])
    plain = {"digest": "ab", "time": one.time, "by": "m.muster", "revoked": False}
    return ("approvals", "site.yaml"), {"approvals": [plain]}


def watch(run, monkeypatch):
    Status(run.status, study="lungs", rounds=10).update(state="finished", round=10)
    return ("watch", run.path), None


def watch_model(run, monkeypatch):
    from medfed.pipeline.watch.state import Look

    look = Look(number=1, made="t", patients=30, known=0, unusable=2, compared=[])
    done = SimpleNamespace(look=look, page=Path("watch.html"))
    monkeypatch.setattr("medfed.pipeline.watch.watch.watch", logs(done))
    monkeypatch.setattr("medfed.pipeline.watch.watch.describe", lambda _: "no alarm")
    plain = {"number": 1, "made": "t", "patients": 30, "known": 0, "unusable": 2, "compared": []}
    return ("watch-model", run.path, "--data", "x"), {"alarm": False, "look": plain, "page": "watch.html"}


def of_aggregation(run, monkeypatch):
    return ("kinds", "aggregation"), None


def plugin(run: RunFolder) -> Path:
    folder = run.path / "json_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from medfed.aggregation import Rule\n\n\n"
        'class Third(Rule, frozen=True, tag="third_of_json"):\n    """A third of the mean."""\n'
    )
    return folder


def plugins_digest(run, monkeypatch):
    folder = plugin(run)
    return ("plugins", "digest", folder), {"name": "json_parts", "digest": plugin_digest(folder)}


def plugins_kinds(run, monkeypatch):
    return ("plugins", "kinds", plugin(run)), {
        "kinds": {"aggregation": {"third_of_json": "A third of the mean."}}
    }


DAY = datetime(2030, 2, 1, tzinfo=UTC)
WORK = "medfed.deployment.enrolment"


def enrol_init(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.enrol.init", logs("AB CD"))
    brokers = [{"host": host, "folder": f"e/broker-{number}"} for number, host in enumerate("abc", 1)]
    plain = {"federation": "lungs", "folder": "e", "fingerprint": "AB CD", "brokers": brokers}
    return ("enrol", "init", "lungs", "--brokers", "a,b,c", "--folder", "e"), plain


def enrol_site(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.enrol.request", logs((Path("n.pem"), "AB")))
    return ("enrol", "site", "north"), {"site": "north", "request": "n.pem", "fingerprint": "AB"}


def enrol_sign(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.enrol.request_fingerprint", lambda _: ("north", "AB"))
    monkeypatch.setattr(f"{WORK}.enrol.sign", logs(SimpleNamespace(expires=DAY)))
    plain = {"site": "north", "fingerprint": "AB", "kit": "north.kit", "expires": "2030-02-01"}
    return ("enrol", "sign", run.report, "--yes"), plain


def enrol_accept(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.enrol.accept", logs(SimpleNamespace(site="north", expires=DAY)))
    monkeypatch.setattr("medfed.wire.credentials.broker_urls", lambda _: ["tls://a:4222"])
    plain = {"site": "north", "expires": "2030-02-01", "urls": ["tls://a:4222"]}
    return ("enrol", "accept", run.report), plain


def enrol_revoke(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.enrol.revoke", logs([SimpleNamespace(site="north", serial="7")]))
    return ("enrol", "revoke", "north"), {"revoked": [{"site": "north", "serial": "7"}]}


def enrol_refresh(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.enrol.refresh", logs(DAY))
    return ("enrol", "refresh"), {"valid_until": "2030-02-01"}


def enrol_study(run, monkeypatch):
    monkeypatch.setattr(f"{WORK}.studies.admit", logs(SimpleNamespace(digest="ab", sites=("north",))))
    return ("enrol", "study", run.report), {"study": "ab", "sites": ["north"]}


def enrol_list(run, monkeypatch):
    common = {"site": "north", "expires": DAY, "days_left": 9, "serial": "7"}
    every = [SimpleNamespace(status=status, **common) for status in ("expires soon", "revoked")]
    monkeypatch.setattr(f"{WORK}.participants.participants", logs(every))
    monkeypatch.setattr("medfed.wire.credentials.read_federation", lambda _: None)
    plain = {"site": "north", "expires": "2030-02-01", "serial": "7"}
    first = plain | {"status": "expires soon", "days_left": 9}
    return ("enrol", "list"), {"certificates": [first, plain | {"status": "revoked", "days_left": None}]}


# How each command is called, and what it then prints; None where a test below looks at some of it.
CASES = {
    "train": train, "hub": hub, "demo": demo, "describe": describe, "evaluate": evaluate, "report": report,
    "predict": predict, "export": export, "new": new, "check": check, "fingerprint make": make,
    "fingerprint merge": merge, "purge": purge, "deidentify": deidentify, "audit verify": audit_verify,
    "audit export": audit_export, "audit ledger": audit_ledger, "audit leakage": leakage,
    "approvals": approvals, "watch": watch, "watch-model": watch_model, "kinds": of_aggregation,
    "plugins digest": plugins_digest, "plugins kinds": plugins_kinds, "enrol init": enrol_init,
    "enrol site": enrol_site, "enrol sign": enrol_sign, "enrol accept": enrol_accept,
    "enrol revoke": enrol_revoke, "enrol refresh": enrol_refresh, "enrol study": enrol_study,
    "enrol list": enrol_list,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_command_prints_one_document_of_the_documented_keys(name, run, monkeypatch):
    monkeypatch.chdir(run.path)
    words, expected = CASES[name](run, monkeypatch)
    found = result(*words)
    if expected is not None:
        assert found == expected
    elif name == "check":
        assert (found["facts"]["rows"], found["study"]) == (40, None)
    elif name == "kinds":
        (registry,) = found["registries"].values()
        assert {*registry["kinds"]} == {*kinds("aggregation")}
    assert {*documented()[name]} <= {*found}
    if name != "watch":
        assert {*documented()[name]} == {*found}


def test_progress_and_what_a_library_prints_go_to_standard_error(run, monkeypatch):
    words, _ = train(run, monkeypatch)
    done = call(*words, "--json")
    assert done.stderr == "a line of progress\nprinted by a library\n"
    assert call(*words).stdout == (
        f"a line of progress\nprinted by a library\nDice 0.9 \nreport: {run.report}\n"
    )


def test_what_is_for_the_owner_alone_is_in_no_document(run, monkeypatch):
    words, _ = evaluate(run, monkeypatch)
    done = call(*words, "--json")
    assert "case 1" not in done.output
    assert "case 1: 0.4" in call(*words).stdout


def test_a_result_that_an_exit_code_tells_is_printed(run, monkeypatch):
    words, expected = leakage(run, monkeypatch)
    done = call(*words[:-1], "0.7", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == expected | {"gate": 0.7, "exceeded": True}


def ended_by(error: BaseException | None, *words: str, document=None):
    """How a command with --json ends that answers a document, and then in an error."""
    group = Commands("medfed")

    @click.command("run")
    def command():
        click.echo("in words")
        if document is not None:
            answer(document)
        if error is not None:
            raise error

    group.add_command(command)
    return CliRunner().invoke(group, ["run", *words])


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (DataError("hospital 'north': no case"), "hospital 'north': no case", 1),
        (DeclinedError("no\n\x1b[2J"), "no\n\x1b[2J", 3),
        (KeyboardInterrupt(), "interrupted; run the same command again", 130),
        (click.Abort(), "aborted: a question was not answered with yes", 1),
        (click.UsageError("give one"), "give one", 2),
        (SystemExit(7), "the command ended without a result", 7),
        # Its text may hold a patient's data.
        (ValueError("Meier"), "an error of the program: ValueError; see standard error", 1),
        (None, "an error of the program: RuntimeError; see standard error", 1),  # it answered nothing
        (OSError(errno.ENOSPC, "No space left on device", "Meier"), "this machine refused a file", 75),
    ],
)
def test_a_failure_is_a_document_with_the_exit_code(error, message, code):
    done = ended_by(error, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == code
    assert found["exit"] == code
    assert found["error"].startswith(message)
    assert {*found} == {"error", "exit"}
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "Meier" not in done.stdout
    assert done.stderr.startswith("in words")


def test_a_failure_after_a_result_is_the_failure():
    done = ended_by(DataError("late"), "--json", document={"ok": True})
    assert json.loads(done.stdout) == {"error": "late", "exit": 1}


def test_numbers_that_are_none_are_null_and_all_but_ascii_is_escaped():
    done = ended_by(None, "--json", document={"a": float("nan"), "b": [float("inf")], "c": "é\u202e\x7f"})
    assert json.loads(done.stdout) == {"a": None, "b": [None], "c": "é\u202e\x7f"}
    assert done.stdout.isascii()
    assert "\x7f" not in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--jason", "--json"),
        ("nothing", "--json"),
        ("enrol", "nothing", "--json"),
        ("--nothing", "check", "--json"),
        ("broker", "--json", "."),
        ("audit", "leakage", "x", "--gate", "2", "--json"),
    ],
)
def test_a_wrong_command_line_is_a_document_too(words):
    done = call(*words)
    assert done.exit_code == 2
    assert json.loads(done.stdout)["exit"] == 2
    assert "Error: " in done.stderr


def test_an_option_that_refuses_its_value_is_a_document():
    done = call("check", "x", "--layout", "paird", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["exit"]) == (1, 1)
    assert done.stderr == f"medfed: {found['error']}\n"


def test_a_question_is_asked_on_standard_error(run, monkeypatch):
    words, expected = enrol_sign(run, monkeypatch)
    done = call(*words[:-1], "--json", input="y\n")
    assert json.loads(done.stdout) == expected
    assert "its fingerprint is\n  AB\n" in done.stderr
    assert json.loads(call(*words[:-1], "--json", input="n\n").stdout)["exit"] == 1


def test_help_and_another_process_print_no_document():
    done = ended_by(None, "--json", "--help")
    assert (done.exit_code, done.stdout) == (0, "")
    group = Commands("medfed")
    group.add_command(click.Command("run", callback=answer_nothing))
    assert CliRunner().invoke(group, ["run", "--json"]).stdout == ""


def test_standard_output_is_as_before_afterwards():
    before = sys.stdout
    ended_by(DataError("x"), "--json")
    assert sys.stdout is before
    assert ended_by(DataError("x")).stdout == "in words\n"
