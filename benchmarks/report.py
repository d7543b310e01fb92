"""Time the report of 2,000 patients with 2,000 draws: rows, comparisons, subgroups and the page.

    python benchmarks/report.py [segment|classify]

The run is synthetic (tests/evaluation/fake_runs.py): five hospitals with 400 patients each, seven models, and
half as many validation rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "evaluation"))

from medfed.evaluation import rows
from medfed.evaluation.report import write_report


def main() -> None:
    """Print the seconds and sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=["segment", "classify"], default="segment")
    task = parser.parse_args().task

    import fake_runs

    with tempfile.TemporaryDirectory() as folder:
        run = fake_runs.write(Path(folder) / "run", task, patients=6)
        cases = (fake_runs.segmentation_cases if task == "segment" else fake_runs.classification_cases)(
            0, 400
        )
        rows.write(run / "cases.jsonl", cases)
        study = json.loads((run / "study.yaml").read_text())
        study["evaluation"]["draws"] = 2000
        (run / "study.yaml").write_text(json.dumps(study))
        began, busy = time.perf_counter(), time.process_time()
        page = write_report(run)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        patients = len({case.patient for case in cases if case.split == "test"})
        print(
            f"{task}: {patients} test patients, {len(cases)} case rows, "
            f"{len(rows.read_rows(run / 'rows.jsonl'))} rows, page of {page.stat().st_size / 1000:.0f} kB: "
            f"{seconds:.1f} s ({busy:.1f} s of processor time)"
        )


if __name__ == "__main__":
    main()
