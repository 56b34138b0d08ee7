"""Several processes under mpirun: one of them is killed, stopped or fails. All end, with a line that names it, and resume to the same bits."""

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dev.drills.checkpoints import differences, last_checkpoint
from dev.drills.report import Lost, Needs, Silent, Try
from dev.drills.training import ROOT, command_line, start, write_data

PROCESSES = 2
HANG = 5  # --hang-timeout, seconds
CHANGES = {"-d": None, "-b": 1, "-z": 1, "--hang-timeout": HANG}
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")

# fault -> what it does in one process (dev/drills/one_rank.py), and what the run says
FAULTS = {"kill": "died|killed|signal 9", "stop": "silent|hangs|died", "fail": "failed|MemoryError", "exit": "died|exit"}


def tries(scale):
    missing = [name for name, found in (("mpirun", MPIRUN), ("mpi4py", importlib.util.find_spec("mpi4py"))) if not found]
    if missing:
        raise Needs(f"{' and '.join(missing)}: pip install -e '.[mpi]'")
    every = [(fault, rank, step) for fault in FAULTS for rank in range(PROCESSES) for step in (0, 5)]
    return [
        *(Try(f"{fault} in rank {rank}, step {step}", _fault(fault, rank, step)) for fault, rank, step in scale.some(every, 1)),
        *(Try(f"SIGUSR1 at rank {rank}", _asked_to_stop(rank)) for rank in range(0 if scale.short else PROCESSES)),
        *(Try("two runs in one directory", _two_runs) for _ in range(not scale.short)),
    ]


def _start(directory, changes=(), fault="none", rank=0, step=0):
    if not (directory / "data").exists():
        write_data(directory)
    program = [str(ROOT / "dev" / "drills" / "one_rank.py"), fault, str(rank), str(step), *command_line({**CHANGES, **dict(changes)})]
    launch = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", str(PROCESSES), sys.executable, *program]
    environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    return start(
        directory, launch, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _wait(process):
    """(exit code, output). Raises Lost if it hangs."""
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise Lost(f"it hangs: {out[-300:]!r}, {err[-600:]!r}") from None
    return process.returncode, out + err


@functools.cache
def _undisturbed():
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        code, output = _wait(_start(Path(directory)))
        if code != 0:
            raise Lost(f"the undisturbed training failed: {output[-1000:]}")
        return last_checkpoint(Path(directory) / "log")


def _expect_resumable(directory):
    code, output = _wait(_start(directory, {"-y": 1}))
    if code != 0:
        raise Lost(f"it cannot be resumed: exit code {code}, {output[-600:]!r}")
    unequal = differences(_undisturbed(), last_checkpoint(directory / "log"))
    if unequal:
        raise Silent(f"unequal bits: {'; '.join(unequal)}")


def _fault(fault, rank, step):
    def run(directory, _rng):
        code, output = _wait(_start(directory, {}, fault, rank, step))
        if code == 0:
            raise Silent(f"exit code 0: {output[-600:]!r}")
        if not re.search(FAULTS[fault], output) or f"rank {rank}" not in output:
            raise Silent(f"nothing says that rank {rank} has met {fault!r}: {output[-1500:]!r}")
        _expect_resumable(directory)

    return run


def _asked_to_stop(rank):
    def run(directory, _rng):
        code, output = _wait(_start(directory, {}, "usr1", rank, 5))
        if code != 130 or "Traceback" in output:
            raise Lost(f"exit code {code} instead of 130: {output[-1000:]!r}")
        _expect_resumable(directory)

    return run


def _two_runs(directory, _rng):
    both = [_start(directory, {"-x": 300}) for _ in range(2)]
    codes = sorted(_wait(one)[0] for one in both)
    if codes != [0, 2]:
        raise (Silent if codes == [0, 0] else Lost)(f"one should run and the other be refused: exit codes {codes}")
