"""A study's own code: what is digested is what runs, where the study is used; errors name its line."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import py_compile
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from medfed.aggregation import Rule
from medfed.errors import StudyError
from medfed.registry import NONE_ADDED, kinds, use_kinds
from medfed.study._plugin_files import MAX_FILES
from medfed.study.canonical import digest_of, public_yaml, study_digest
from medfed.study.plugins import load_plugin, loaded_plugin, plugin_digest
from medfed.study.reading import parse_study, plain_study, read_run_study, read_study, use_study
from medfed.study.schema import schema

ROOT = Path(__file__).parents[2]

RULE = """\
from medfed.aggregation import Rule
from .settings import SHARE


class Half(Rule, frozen=True, tag="half"):
    \"""Half of the mean update is added to the model.\"""

    share: float = SHARE
"""


@pytest.fixture(autouse=True)
def nothing_stays_in_use():
    yield
    use_kinds(NONE_ADDED)


def write_plugin(folder: Path, **files: str) -> Path:
    """Write a package with a rule `half`, or with other sources by module."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"__init__": "from .half import Half\n", "half": RULE, "settings": "SHARE = 0.5\n", **files}
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return folder


@pytest.fixture
def study(write, study_text, tmp_path):
    """A study beside a plug-in `parts`, whose rule it names."""
    write_plugin(tmp_path / "parts")
    return write(study_text + "plugins: [parts]\nrule: {kind: half, share: 0.25}\n")


# ---- the digest


def test_the_digest_is_that_of_paths_and_bytes_in_their_order(tmp_path):
    folder = tmp_path / "parts"
    (folder / "sub").mkdir(parents=True)
    files = {"__init__.py": b"", "sub/data.csv": b"1,2\n", "sub.py": b"x = 1\n"}
    for path, content in files.items():
        (folder / path).write_bytes(content)

    def sha(data):
        return hashlib.sha256(data).digest()

    # '.' sorts before '/', so sub.py stands before sub/data.csv.
    order = ["__init__.py", "sub.py", "sub/data.csv"]
    by_hand = hashlib.sha256(b"".join(sha(path.encode()) + sha(files[path]) for path in order))
    assert plugin_digest(folder) == f"sha256:{by_hand.hexdigest()}"


def test_a_byte_a_name_or_a_further_file_changes_the_digest_and_leftovers_do_not(tmp_path):
    folder = write_plugin(tmp_path / "parts")
    first = plugin_digest(folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "half.cpython-311.pyc").write_bytes(b"x")
    assert plugin_digest(folder) == first
    assert plugin_digest(write_plugin(tmp_path / "elsewhere")) == first
    (folder / "notes.txt").write_text("")
    second = plugin_digest(folder)
    (folder / "notes.txt").rename(folder / "nodes.txt")
    assert len({first, second, plugin_digest(folder)}) == 3


def link(folder):
    (folder / "half.py").unlink()
    os.symlink("/etc/hostname", folder / "half.py")


def many(folder):
    for number in range(MAX_FILES):
        (folder / f"{number}.txt").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (link, r"plug-in 'parts': half\.py is a link, whose target could change"),
        (many, r"plug-in 'parts': its folder holds more than 1000 files or 32 MB"),
        (lambda folder: (folder / "fast.so").touch(), r"plug-in 'parts': fast\.so is compiled code"),
        (
            lambda folder: (folder / "__init__.py").unlink(),
            r"plug-in 'parts': its folder has no __init__\.py",
        ),
        (lambda folder: os.mkfifo(folder / "pipe"), r"plug-in 'parts': pipe is no file"),
    ],
    ids=["a link", "many files", "compiled", "no package", "a pipe"],
)
def test_what_is_no_package_of_source_is_refused(tmp_path, spoil, message):
    folder = write_plugin(tmp_path / "parts")
    spoil(folder)
    with pytest.raises(StudyError, match=message):
        plugin_digest(folder)


# ---- the study


def test_a_study_names_kinds_of_the_package_beside_it(study, tmp_path):
    read = read_study(study)
    assert (type(read.rule).__name__, read.rule.share) == ("Half", 0.25)
    assert isinstance(read.rule, Rule)
    assert read.plugins["parts"].path == str(tmp_path / "parts")
    assert read.plugins["parts"].digest == plugin_digest(tmp_path / "parts")
    # Every record is medfed's own, so that nothing that asks for its type is surprised.
    assert {type(read).__module__, type(read.train).__module__} == {"medfed.study.study"}
    assert type(read) is type(parse_study(plain_text(study)))


def plain_text(study: Path) -> str:
    return study.read_text().partition("plugins:")[0]


def test_what_hospitals_approve_holds_the_digest_and_no_folder(study, tmp_path):
    read = read_study(study)
    public = plain_study(public_yaml(read), "public")
    assert public["plugins"] == {"parts": {"digest": plugin_digest(tmp_path / "parts")}}
    assert digest_of(public) == study_digest(read)
    (tmp_path / "parts" / "settings.py").write_text("SHARE = 0.6\n")
    assert study_digest(read_study(study)) != study_digest(read)


def test_a_study_without_plug_ins_has_no_such_key_and_keeps_its_digest(write):
    assert "plugins" not in public_yaml(read_study(write()))


def test_a_plug_in_whose_kinds_have_kinds_inside_is_read_with_them(write, study_text, tmp_path):
    loss = (
        "from medfed.models.losses import Loss\n\n\n"
        'class Mine(Loss, frozen=True, tag="mine"):\n    """A loss of one\'s own, for tests."""\n\n'
        '    serves = ("segment",)\n\n    def outputs(self, classes):\n        return classes\n'
    )
    write_plugin(tmp_path / "parts", __init__="from .mine import Mine\n", mine=loss)
    text = study_text.replace("lesion]}", "lesion], loss: {kind: mine}}") + "plugins: {parts: parts}\n"
    read = read_study(write(text))
    assert type(read.task.loss).__name__ == "Mine"
    assert type(read.task) is kinds("tasks")["segment"]


def test_its_kinds_are_known_to_that_study_and_to_no_other(study, write, study_text):
    first = read_study(study)
    assert "half" in kinds("aggregation")
    write()
    read_study(study)
    assert "half" not in kinds("aggregation")
    with pytest.raises(StudyError, match=r"rule\.kind: no 'half'; there are "):
        read_study(write(study_text + "rule: {kind: half}\n"))
    use_study(first)
    assert "half" in kinds("aggregation")
    seen = []
    thread = threading.Thread(target=lambda: seen.append("half" in kinds("aggregation")))
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_wrong_name_is_answered_with_the_plug_ins_kind_and_its_settings(write, study_text, study):
    with pytest.raises(StudyError, match=r"rule\.kind: no 'halff'; did you mean 'half'\?"):
        read_study(study, ["rule.kind=halff"])
    with pytest.raises(StudyError, match=r"rule\.shar: no such key; did you mean 'share'\?"):
        read_study(study, ["rule={kind: half, shar: 1}"])


def test_a_study_may_pin_the_digest(write, study_text, tmp_path):
    write_plugin(tmp_path / "parts")
    known = plugin_digest(tmp_path / "parts")
    pinned = study_text + f'plugins: {{parts: {{path: parts, digest: "{known}"}}}}\n'
    assert read_study(write(pinned)).plugins["parts"].digest == known
    (tmp_path / "parts" / "settings.py").write_text("SHARE = 0.9\n")
    with pytest.raises(
        StudyError, match=rf"study\.yaml: plug-in 'parts': its folder has the digest .*{known}"
    ):
        read_study(write(pinned))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plugins: [nowhere]", r"study\.yaml: plug-in 'nowhere': there is no such folder"),
        ("plugins: [a/parts, b/parts]", r"study\.yaml:11: plugins: two folders are called 'parts'"),
        ("plugins: [3]", r"study\.yaml:11: plugins: found 3; expected a package's folder"),
        ("plugins: [My-Parts]", r"study\.yaml:11: plugins.*of small letters, digits and '_'"),
        ("plugins: {parts: {}}", r"study\.yaml: plugins\.parts: has no path; name its folder"),
        (
            "plugins: {parts: {path: parts, digest: abc}}",
            r"plugins.*such as sha256:\.\.\., as `medfed plugins",
        ),
        ("plugins: {parts: {place: x}}", r"plugins.*no such key"),
    ],
)
def test_a_wrong_request_is_named_by_file_line_and_key(write, study_text, line, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(study_text + line + "\n"))


def test_a_run_folder_brings_no_code(study, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_plugin(run / "parts")
    for path in ("parts", str(run / "parts"), "../parts"):
        given = f'{{path: {path}, digest: "{plugin_digest(tmp_path / "parts")}"}}'
        text = study.read_text().replace("plugins: [parts]", f"plugins: {{parts: {given}}}")
        (run / "study.yaml").write_text(text)
        with pytest.raises(StudyError, match="a run's code is not taken from the run folder"):
            read_run_study(run / "study.yaml")
    (run / "study.yaml").write_text(study.read_text().replace("[parts]", f"{{parts: {tmp_path / 'parts'}}}"))
    with pytest.raises(StudyError, match="give the absolute path of your own copy, and its digest"):
        read_run_study(run / "study.yaml")
    (run / "study.yaml").write_text(text.replace("../parts", str(tmp_path / "parts")))
    assert read_run_study(run / "study.yaml").plugins["parts"].path == str(tmp_path / "parts")


def test_a_text_alone_loads_no_code(study):
    with pytest.raises(StudyError, match="no 'half'"):
        parse_study(study.read_text())


def test_an_editors_schema_takes_folders_by_list_and_by_name():
    jsonschema = pytest.importorskip("jsonschema")
    plugins = {"$defs": schema()["$defs"], **schema()["$defs"]["Study"]["properties"]["plugins"]}
    for right in (["parts"], {"parts": "parts"}, {"parts": {"path": "x"}}, {}):
        jsonschema.validate(right, plugins)
    with pytest.raises(jsonschema.ValidationError, match="is not of type"):
        jsonschema.validate([{"path": "x"}], plugins)


# ---- what runs


def test_what_runs_is_the_source_that_was_digested_not_a_compiled_file(tmp_path):
    folder = write_plugin(tmp_path / "parts")
    settings = folder / "settings.py"
    times = settings.stat()
    # A compiled file that Python would take for the source's: of its size and time, with another number.
    settings.write_text("SHARE = 0.1\n")
    os.utime(settings, ns=(times.st_atime_ns, times.st_mtime_ns))
    py_compile.compile(str(settings), cfile=importlib.util.cache_from_source(str(settings)))
    settings.write_text("SHARE = 0.7\n")
    os.utime(settings, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_plugin("parts", folder).kinds["aggregation"]["half"]().share == 0.7


def test_two_versions_run_beside_each_other(tmp_path):
    old = load_plugin("parts", write_plugin(tmp_path / "a", settings="SHARE = 0.31\n"))
    new = load_plugin("parts", write_plugin(tmp_path / "b", settings="SHARE = 0.32\n"))
    assert [one.kinds["aggregation"]["half"]().share for one in (old, new)] == [0.31, 0.32]
    assert loaded_plugin("parts", old.digest) is old
    with pytest.raises(StudyError, match=r"plug-in 'parts' \(sha256:0\): was not loaded"):
        loaded_plugin("parts", "sha256:0")


def test_a_package_reads_its_own_data(tmp_path):
    source = RULE.replace(
        "from .settings import SHARE", 'import pkgutil\nSHARE = float(pkgutil.get_data(__package__, "n.txt"))'
    )
    folder = write_plugin(tmp_path / "parts", half=source)
    (folder / "n.txt").write_text("0.125")
    assert load_plugin("parts", folder).kinds["aggregation"]["half"]().share == 0.125


FAULTS = {
    "syntax": (
        {"half": "x = 1\ndef\n"},
        r"plug-in 'parts': half\.py, line 2: is not Python: invalid syntax",
    ),
    "an error in a module": (
        {"half": "\n\nx = unknown\n"},
        r"plug-in 'parts': half\.py, line 3: NameError: name 'unknown' is not defined",
    ),
    "an exit": ({"half": "raise SystemExit(3)\n"}, r"plug-in 'parts': half\.py, line 1: SystemExit: 3"),
    "a package that is not installed": (
        {"half": "import nowhere_at_all\n"},
        r"half\.py, line 1: ModuleNotFoundError: .*; install 'nowhere_at_all' in this environment",
    ),
    "its own module, as in a script": (
        {"half": "import settings\n"},
        r"half\.py, line 1: .*; import the plug-in's own 'settings' relatively",
    ),
    "its own name": (
        {"half": "\nfrom parts.settings import SHARE\n"},
        r"plug-in 'parts': half\.py, line 2: imports 'parts' by its name, which may be another package",
    ),
    "no kind": ({"__init__": ""}, r"plug-in 'parts': its __init__\.py shows no kind; import them there"),
    "no tag": (
        {"half": RULE.replace(', tag="half"', "")},
        r"plug-in 'parts': the kind Half has no tag; write class Half\(",
    ),
    "medfed's name": (
        {"half": RULE.replace('tag="half"', 'tag="median"')},
        r"the kind Half is called 'median', and medfed or an installed package has a kind of this name",
    ),
    "no registry": (
        {"half": 'from medfed.registry import Kind\nclass Half(Kind, frozen=True, tag="half"):\n    "A."\n'},
        r"the kind Half is of no registry; subclass one of medfed's records",
    ),
    "a type that no file can hold": (
        {"half": RULE.replace("share: float = SHARE", "share: 'Unheard' = SHARE")},
        r"the kind Half cannot be read from a study: ",
    ),
    "two of one name": (
        {
            "half": RULE + RULE.partition("\n\n\n")[2].replace("class Half", "\n\nclass Other"),
            "__init__": "from .half import Half, Other\n",
        },
        r"plug-in 'parts': two of its kinds are called 'half' in aggregation",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_an_error_names_the_plug_in_its_file_and_line(tmp_path, files, message):
    with pytest.raises(StudyError, match=message):
        load_plugin("parts", write_plugin(tmp_path / "parts", **files))


def test_a_package_that_failed_is_loaded_once_it_is_mended(tmp_path):
    folder = write_plugin(tmp_path / "parts", half="x = unknown\n")
    with pytest.raises(StudyError, match="NameError"):
        load_plugin("parts", folder)
    assert set(load_plugin("parts", write_plugin(folder)).kinds) == {"aggregation"}


def test_two_plug_ins_with_one_kind_are_refused(write, study_text, tmp_path):
    write_plugin(tmp_path / "parts")
    write_plugin(tmp_path / "more", settings="SHARE = 0.75\n")
    with pytest.raises(StudyError, match="plug-ins 'more' and 'parts' both add 'half' to aggregation"):
        read_study(write(study_text + "plugins: [parts, more]\n"))


def test_a_changed_folder_is_noticed_before_a_study_trains_again(study, tmp_path):
    read = read_study(study)
    (tmp_path / "parts" / "settings.py").write_text("SHARE = 0.8\n")
    with pytest.raises(StudyError, match="the study: plug-in 'parts': its folder has the digest"):
        use_study(read)


def test_another_process_gets_a_record_with_the_code_that_was_digested(study, tmp_path):
    """As a worker that reads cases does, which is not forked from this process."""
    stored = tmp_path / "rule.pickle"
    stored.write_bytes(pickle.dumps([read_study(study).rule, kinds("networks")["unet"]]))
    code = "import pickle, sys; a, b = pickle.load(open(sys.argv[1], 'rb')); print(a.share, b.__name__)"
    run = partial(subprocess.run, [sys.executable, "-c", code, str(stored)], capture_output=True, text=True)
    done = run(env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=False)
    assert done.stdout == "0.25 UNet\n", done.stderr
    (tmp_path / "parts" / "settings.py").write_text("SHARE = 0.9\n")
    assert "its folder has the digest" in run(env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=False).stderr


def test_a_study_with_very_many_plug_ins_is_refused(write, study_text):
    named = ", ".join(f"p{number}: {{digest: 'sha256:{'0' * 64}'}}" for number in range(17))
    with pytest.raises(StudyError, match=r"study\.yaml:11: plugins: .*length <= 16"):
        read_study(write(study_text + f"plugins: {{{named}}}\n"))
