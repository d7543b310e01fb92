"""No wait without a line that says for what: each call that may wait is here, with that line and its end.

A new one fails this test until someone writes here what its user sees, and when it gives up.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import medfed

PACKAGE = Path(medfed.__file__).parent

# The calls that wait: of events, conditions, threads, processes, futures, locks and the exchange's stores.
NAMES = {"sleep", "wait", "wait_for", "select", "communicate", "result", "lock", "flock"}
_JOINED = re.compile(r"thread|heart|process|pool")

TOLD = "'... waits for ... since ...' after a minute, of a connected site after ten (exchange/_waiting.py)"
OUTAGE = "'...: no route; trying again' at once, once per outage (exchange/_protocol.py)"
AROUND = "that of the loop around it"
BUSY = "none: what it waits for is at work in this process or a child of it"
SHORT = "none: some seconds at most"
BEAT = "none: the pause of a thread for which nobody waits"
FILE = "none: another process writes a line or a small file meanwhile"

# Per module and function: the line that is shown, and what ends the wait.
WAITS = {
    # In a hospital.
    "exchange/_offers.py wait_for_offers": ("'waits until the hub offers a study' at once", "give_up_hours"),
    "exchange/_offers.py _with_liveness": ("'looks for 12.5 s whose hub runs'", "2.5 heartbeats"),
    "exchange/_presence.py claim": ("'looks for 12.5 s whether ...'", "2.5 heartbeats; hub and site"),
    "exchange/_site_transport.py _poll": (TOLD, "give_up_hours without a sign of life; the study's end"),
    "exchange/_site_transport.py drop_out": (SHORT, "DROP_OUT_TIMEOUT_S"),
    "exchange/_protocol.py wait_for_object": ("none: tests alone call it", "never"),
    # At the hub.
    "exchange/_hub_transport.py _collect": (TOLD, "sampling.deadline_s; without one Ctrl-C, then --resume"),
    "exchange/_hub_transport.py _collect_async": (TOLD, "as _collect"),
    "exchange/_hub_transport.py _collect_messages": (TOLD, "as _collect; the mechanism's patience_s"),
    "exchange/_hub_transport.py wait_for_return": ("'The hub waits until ... for ...' at once", "that time"),
    "exchange/_site_answers.py _download": (SHORT, "MAX_ATTEMPTS"),
    # At both: the store is unreachable, or the own disk is full.
    "exchange/_protocol.py wait": (OUTAGE, "of a site give_up_hours; of a hub none: its sites wait"),
    "exchange/_protocol.py __call__": (OUTAGE, "as wait"),
    "exchange/_nats_store.py wait": (AROUND, "a second"),
    "exchange/_nats_store.py close": (SHORT, "5 s"),
    "exchange/_nats_store.py _connected": (AROUND, "the exchange's timeout_s"),
    "exchange/_nats_connecting.py answer_of": (AROUND, "the exchange's timeout_s, or three pings"),
    "exchange/_nats_cluster.py answer_of": ("'... have not answered a request for 5 s'", "timeout_s"),
    "exchange/_nats_connecting.py run_unless": (AROUND, "the exchange's timeout_s"),
    "exchange/_nats_connecting.py close_quietly": (SHORT, "2 s"),
    "exchange/folder.py wait": (AROUND, "poll_s"),
    "exchange/_concurrency.py collect_finished": (AROUND, "each transfer's own timeout"),
    "exchange/_concurrency.py run_bounded": (AROUND, "each transfer's own timeout"),
    "exchange/_chunks.py wait_written": (BUSY, "the file is written, or the disk's error"),
    "exchange/_chunks.py _wait_for_chunk": (BUSY, "the file is written, or the disk's error"),
    "exchange/_presence.py _send_heartbeats": (BEAT, "the side is closed"),
    # Networks that others lead.
    "exchange/_handoff.py _pause": ("'waits for ..., at most ... s, from ...' (info)", "timeout_s, 24 hours"),
    "exchange/_handoff.py _try_lock": (SHORT, "_LOCK_TRIES"),
    "exchange/_handoff.py ask": ("none: the task before it, of the same site, is answered", "as that one"),
    # The broker.
    "deployment/enrolment/broker.py __init__": (BUSY, "the server is started"),
    "deployment/enrolment/broker.py _end_previous": (SHORT, "PREVIOUS_SERVER_S, then it is killed"),
    "deployment/enrolment/broker.py _end_within": (SHORT, "20 s, or 5 of a silent one, then it is killed"),
    "deployment/enrolment/broker.py _run": (SHORT, "the server is told to end, and killed after 20 s"),
    "deployment/enrolment/stream_watch.py _watch": (BEAT, "stop"),
    "deployment/enrolment/stream_watch.py _unanswered": (BEAT, "STEP_S"),
    "deployment/enrolment/stream_watch.py _answers_ping": (BEAT, "PING_S"),
    "deployment/enrolment/stream_watch.py stop": (SHORT, "its requests are cancelled, or STOP_S"),
    "deployment/enrolment/broker.py _supervise": (BEAT, "stop"),
    "deployment/enrolment/rights.py _follow_rights": ("'listens at ...' at once", "Ctrl-C"),
    "deployment/enrolment/configuration.py write_configuration": (FILE, "that is written"),
    "exchange/_admitted.py record_admitted": (FILE, "that is written"),
    # Pages, statuses and records.
    "cli/watch.py watch": ("'live page: ... (Ctrl-C ends it, not the run)'", "Ctrl-C"),
    "deployment/live_page/server.py serve": (SHORT, "the server ends"),
    "deployment/live_page/server.py _wait_started": (BUSY, "the server listens, or its error"),
    "deployment/background.py repeat": (BEAT, "the block ends"),
    "deployment/background.py run_periodically": (BUSY, "the last look ends"),
    "runs/status.py beat": (BEAT, "the block ends"),
    "runs/status.py keep_status": (BUSY, "the last writing ends"),
    "runs/trackers/_tracking.py close": (SHORT, "CLOSE_S, and says what is lost"),
    "wire/audit_log.py write_all": (FILE, "that is written"),
    "privacy/accounting/ledger_file.py locked": (FILE, "that is written"),
    "deployment/patient_sets.py patient_sets": (FILE, "that is written"),
    "files.py lock": (AROUND, "as whoever calls it"),
    # Simulations: the progress table shows who trains.
    "exchange/memory.py fetch": (BUSY, "the round ends or the hub closes"),
    "exchange/memory.py wait_for_model": (BUSY, "the round ends or the hub closes"),
    "exchange/memory.py collect": (BUSY, "deadline_s, 24 hours"),
    "exchange/memory.py collect_async": (BUSY, "deadline_s, 24 hours"),
    "exchange/memory.py receive_message": (BUSY, "the round ends or the hub closes"),
    "exchange/memory.py collect_messages": (BUSY, "deadline_s, 24 hours"),
    "federation/simulation.py _join": (BUSY, "deadline_s"),
    "federation/_site_worker.py run": (SHORT, "_LAST_STEPS_S for each site, then it exits"),
    "federation/_worker_process.py _shut_at_end": (BEAT, "the worker's process ends"),
    "federation/_worker_process.py wait": (SHORT, "its caller's time"),
    "federation/ray_workers.py _begun": (SHORT, "a second, ATTEMPTS times"),
    "federation/ray_workers.py _needs": (SHORT, "FREED_S"),
    "federation/ray_workers.py wait": (SHORT, "its caller's time"),
    "federation/worker_processes.py _replace": (SHORT, "the process was killed"),
    "federation/worker_processes.py end": (SHORT, "GRACE_S, then it is killed"),
    "pipeline/describing.py describe_here": (BUSY, "the statistics are summed"),
    # Reading images: a bar shows how many cases are read.
    "data/dicom/decoder_process.py _read_exactly": (SHORT, "the decoder's timeout per image"),
    "data/dicom/decoder_process.py _end_child": (SHORT, "the decoder was killed"),
    "data/dicom/pixels.py iter_words": (BUSY, "the frame is decoded"),
    "data/preflight/examination.py _in_processes": (BUSY, "the case is read"),
}


def waits() -> Iterator[str]:
    """Yield the module and function of each call that may wait."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = str(path.relative_to(PACKAGE))
        if not module.startswith("testing/"):
            yield from (f"{module} {function}" for function in _waiting(ast.parse(path.read_text()), ""))


def _waiting(node: ast.AST, function: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        if isinstance(child, ast.Call) and _may_wait(child):
            yield inside
        yield from _waiting(child, inside)


def _may_wait(call: ast.Call) -> bool:
    at_once = any(
        one.arg == "wait" and isinstance(one.value, ast.Constant) and one.value.value is False
        for one in call.keywords
    )
    if isinstance(call.func, ast.Attribute):
        name, of = call.func.attr, ast.unparse(call.func.value)
        return (name in NAMES or (name == "join" and bool(_JOINED.search(of)))) and not at_once
    return isinstance(call.func, ast.Name) and call.func.id in NAMES and not at_once


def test_each_wait_says_for_what_or_needs_not():
    found = {*waits()}
    assert not found - WAITS.keys(), "say here which line a user sees while it waits, and what ends it"
    assert not WAITS.keys() - found, "these wait no more"


def test_a_wait_is_recognised():
    source = (
        "def f():\n    thread.join(3)\n    ', '.join(names)\n    lock(file, wait=False)\n    time.sleep(1)"
    )
    assert [*_waiting(ast.parse(source), "")] == ["f", "f"]
