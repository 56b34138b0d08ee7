"""Runs the check's other processes, with a time limit, and reads what they report: JSON, a line each."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_module(module, arguments, seconds, simulator):
    """Run `python -m module arguments`. Returns (the dicts that it reported, exit code or None if the time was over).

    simulator: whether Numba's simulator is on in that process.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_ENABLE_CUDASIM": str(int(simulator)), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return _reports(output), process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        return _reports(process.communicate()[0]), None
    except BaseException:  # such as Ctrl-C
        process.kill()
        raise


def _reports(output):
    """The lines that are JSON objects: code that is being checked may find a way to print others."""
    found = []
    for line in output.splitlines():
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if isinstance(report, dict):
            found.append(report)
    return found
