"""`--log-json`: one JSON object a line on standard error, with no other package's text and no error's."""

from __future__ import annotations

import json
import logging
import re
import threading
import warnings

import click
import pytest
from click.testing import CliRunner

from medfed.cli.commands import main
from medfed.cli.error_handling import Commands
from medfed.errors import DataError
from medfed.runs import json_log
from medfed.runs.progress import progress_display, show_warnings
from medfed.runs.rounds import RoundReport


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def written(capsys):
    """The lines that the block of a test writes."""
    with json_log.json_logs():
        yield lambda: lines(capsys.readouterr().err)


def without_time(line):
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    return line


def test_a_warning_is_one_line_with_its_logger_and_control_characters_escaped(written, capsys):
    log = logging.getLogger("medfed.exchange")
    log.warning("site '%s' says: %s", "north", "a\n{}\x1b[2J\x7f\u202e\u2028")
    raw = capsys.readouterr().err
    assert raw.count("\n") == 1
    assert raw.isascii()
    assert raw.rstrip("\n").isprintable()
    assert without_time(json.loads(raw)) == {
        "level": "WARNING",
        "logger": "medfed.exchange",
        "message": "site 'north' says: a\n{}\x1b[2J\x7f\u202e\u2028",
    }


def test_time_is_utc(capsys, written):
    record = logging.LogRecord("medfed", logging.ERROR, "", 0, "x", (), None)
    record.created = 1_800_000_000.25  # 15 January 2027, 08:00
    logging.getLogger("medfed").handle(record)
    assert written()[0]["time"] == "2027-01-15T08:00:00.250Z"


def test_what_other_packages_say_is_withheld(written):
    logging.getLogger("pydicom").warning("PatientName Meier^Anna is invalid")
    logging.getLogger("medfedder").warning("Meier")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Meier", UserWarning, stacklevel=1)
    found = written()
    assert [line["logger"] for line in found] == ["pydicom", "medfedder", "py.warnings"]
    assert not any("Meier" in str(line) for line in found)
    assert all(str(line["message"]).startswith("withheld: ") for line in found)


def test_of_an_exception_its_class_is_written(written):
    try:
        raise ValueError("Meier")
    except ValueError:
        logging.getLogger("medfed.federation").exception("the site stopped")
    (line,) = written()
    assert (line["message"], line["error"]) == ("the site stopped", "ValueError")
    assert "Meier" not in str(line)


def test_a_line_names_the_site_whose_code_runs(written):
    log = logging.getLogger("medfed")
    log.warning("nobody's")
    json_log.set_site("hospital")
    log.warning("its own")
    token = json_log.RUNNING_SITE.set("north")
    log.warning("of one of several")
    log.warning("said", extra={"site": "south"})
    json_log.RUNNING_SITE.reset(token)
    assert [line.get("site") for line in written()] == [None, "hospital", "north", "south"]


def test_progress_is_written_with_its_round_and_a_warning_once(written):
    display = progress_display()
    display.start("lungs", {"north": 3}, 5, "val/dice")
    with show_warnings(display):
        logging.getLogger("medfed").warning("once")
    display.round(RoundReport(2, (), 1.0, 0))
    display.log("a\nb")
    first, warned, *later = [without_time(line) for line in written()]
    assert first == {"level": "INFO", "logger": "medfed.progress", "message": "lungs: north (3 cases)"}
    assert warned == {"level": "WARNING", "logger": "medfed", "message": "once"}
    *of_round, last = later
    assert {line["round"] for line in of_round} == {2}
    assert of_round[-1]["message"].startswith("round 2/5 ")
    assert (last["message"], last.get("round")) == ("a\nb", None)


def test_an_error_in_a_thread_is_its_class_and_its_place(written):
    def fail():
        json_log.ascii_json(object())  # a TypeError

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = written()
    assert line["level"] == "CRITICAL"
    assert re.fullmatch(r"TypeError at medfed\.runs\.json_log:\d+", str(line["message"]))


def test_a_long_message_is_cut(written):
    logging.getLogger("medfed").warning("%s", "x" * 2010)
    (line,) = written()
    assert line["message"] == "x" * 2000 + "... (10 more characters)"


def test_of_a_line_that_cannot_be_formatted_its_place_is_written(written):
    record = logging.LogRecord("medfed", logging.ERROR, "a/b.py", 7, "%d", ("Meier",), None)
    (handler,) = [one for one in logging.getLogger().handlers if one.__module__ == json_log.__name__]
    handler.handle(record)
    (line,) = written()
    assert line["message"] == "a log line of b:7 cannot be written (TypeError)"


def test_afterwards_everything_is_as_before():
    root, hook, show = logging.getLogger(), threading.excepthook, warnings.showwarning
    handlers = [*root.handlers]
    with json_log.json_logs():
        assert json_log.is_active()
    assert (root.handlers, threading.excepthook, warnings.showwarning) == (handlers, hook, show)
    assert not json_log.is_active()


@pytest.mark.parametrize(("words", "variable"), [(["--log-json"], None), ([], "1")])
def test_a_command_writes_its_failure_so(words, variable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*words, "train", "no.yaml"], env={json_log.VARIABLE: variable})
    assert done.exit_code == 1
    (line,) = lines(done.stderr)
    assert without_time(line) == {"level": "ERROR", "logger": "medfed", "message": "no.yaml: no such file"}
    assert CliRunner().invoke(main, ["train", "no.yaml"]).stderr == "medfed: no.yaml: no such file\n"


def test_so_it_does_of_a_wrong_command_line():
    done = CliRunner().invoke(main, ["--log-json", "train", "--nothing", "--json"])
    assert done.exit_code == 2
    (line,) = lines(done.stderr)
    assert str(line["message"]).startswith("No such option")
    assert json.loads(done.stdout) == {"error": line["message"], "exit": 2}


def ended_by(error):
    group = Commands("medfed")

    def command():
        with json_log.json_logs():
            # As the group does, whose context ends after its command.
            raise error

    group.add_command(click.Command("run", callback=command))
    with json_log.json_logs():
        return CliRunner().invoke(group, ["run"])


def test_an_error_of_the_program_is_its_class_and_place_without_its_text(monkeypatch):
    done = ended_by(ValueError("Meier"))
    assert done.exit_code == 1
    critical, error = lines(done.stderr)
    assert critical["level"] == "CRITICAL"
    assert re.fullmatch(r"ValueError at medfed\.cli\.error_handling:\d+", str(critical["message"]))
    assert error["message"] == "an error of the program: ValueError (MEDFED_TRACEBACK=1 shows the traceback)"
    assert "Meier" not in done.output
    monkeypatch.setenv("MEDFED_TRACEBACK", "1")
    assert isinstance(ended_by(ValueError("Meier")).exception, ValueError)


def test_a_refusal_keeps_its_text_on_one_line():
    (line,) = lines(ended_by(DataError("a\nb")).stderr)
    assert line["message"] == "a\nb"
