"""The drills in their short form; and that they count what they find, and find what is wrong."""

import errno
import random
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("the drills fork, and send signals", allow_module_level=True)
pytest.importorskip("hypothesis", reason="the drills need hypothesis: pip install -e '.[test]'")

from hypothesis import strategies as st

from dev.drills import DRILLS, report
from dev.drills.checkpoints import differences, expect_end, expect_resumable, expect_same_bits, resumed_from
from dev.drills.file_operations import fails, kill_halfway, on, operations, plant
from dev.drills.fuzz import try_inputs
from dev.drills.planting import before_step
from dev.drills.report import Lost, Needs, Scale, Silent, Try, run_drill
from dev.drills.training import Ended, Training, train
from dev.drills.ways_to_damage import DAMAGE, HEADER_DAMAGE
from gpt2_numba.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", DRILLS)
def test_short_form(name):
    done = subprocess.run([sys.executable, "-m", "dev.drills", name, "--short"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(done.stdout, done.stderr)
    _, tried, survived, lost, silent, notes, *_ = (cell.strip() for cell in done.stdout.splitlines()[2].split("|")[1:])
    assert done.returncode == 0 and (lost, silent) == ("0", "0")
    assert tried == survived and (tried != "0" or notes.startswith("needs "))


# ------------------------------------------------------------------------------------------------------------- the table


@pytest.fixture
def drill(monkeypatch):
    """Make the drill "kills" one with the given tries: functions (directory, rng)."""

    def make(*runs):
        module = types.SimpleNamespace(tries=lambda scale: [Try(f"try {n}", run) for n, run in enumerate(runs)])
        monkeypatch.setattr(report.importlib, "import_module", lambda name: module)

    return make


def raises(error):
    def run(_directory, _rng):
        raise error

    return run


def test_verdicts_are_counted(drill):
    drill(lambda *_: None, lambda *_: 5, raises(Lost("gone")), raises(Silent("not a word")), raises(Needs("root")), raises(Needs("root")))
    row = run_drill("kills", Scale(times=2), seed=3)
    assert (row.tried, row.survived, row.lost, row.silent) == (8, 6, 1, 1) and not row.passed
    assert str(row) == "| kills      |     8 |        6 |    1 |      1 | needs root (2 not tried) |"
    lost, silent = row.details(["--device", "gpu"])
    assert lost == "\nlost: kills 2, try 2: gone\n    python -m dev.drills kills --seed 3 --times 2 --only 2 -- --device gpu"
    assert "silent: kills 3, try 3: not a word" in silent


def test_a_fault_of_a_drill_is_no_success(drill):
    drill(raises(KeyError("a slip")))
    row = run_drill("kills", Scale())
    assert row.lost == 1 and "the drill itself failed" in next(row.details())


def test_one_try_alone_has_the_same_random_numbers(drill):
    drawn = []
    drill(*[lambda _directory, rng: drawn.append(rng.random())] * 4)
    run_drill("kills", Scale())
    run_drill("kills", Scale(), only=2)
    assert drawn[4:] == [drawn[2]] and len(set(drawn[:4])) == 4


def test_scale():
    assert (Scale().random(200, short=6), Scale(times=0.5).random(200, short=6), Scale(short=True).random(200, short=6)) == (200, 100, 6)
    assert Scale().some(range(9), 3) == list(range(9)) and Scale(short=True).some(range(9), 3) == [0, 3, 6]


@pytest.mark.parametrize("argv", [["kils"], ["--only", "1"]])
def test_wrong_arguments(argv):
    done = subprocess.run([sys.executable, "-m", "dev.drills", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------------------------- what the drills find


def test_differences():
    assert differences({"a": b"1"}, {"a": b"1"}) == []
    assert differences({"a": b"1", "b": b"2", "d": b"123", "e": b"12"}, {"a": b"1", "c": b"2", "d": b"1x3", "e": b"1"}) == [
        "b: only in the undisturbed training",
        "c: only in the disturbed training",
        "d: 1 of 3 bytes differ, the first at 1",
        "e: 2 bytes undisturbed, 1 disturbed",
    ]


def test_one_bit_of_one_weight_is_found(tmp_path):
    def flip(model):
        model.params.wpe.reshape(-1).view("u4")[3] ^= 1

    ended = train(tmp_path, prepare=lambda: before_step(11, flip))
    assert ended.code == 0
    with pytest.raises(Silent, match="model_00000012.bin: .* bytes differ"):
        expect_same_bits(tmp_path)


def test_a_lost_checkpoint_is_found(tmp_path):
    assert train(tmp_path).code == 0
    for path in (tmp_path / "log").glob("*_00000012*"):
        path.unlink()
    assert resumed_from(expect_resumable(tmp_path)) == 10
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    with pytest.raises(Lost, match="no complete checkpoint"):
        expect_same_bits(tmp_path)


@pytest.mark.parametrize(("ended", "error"), [
    (Ended(0, "", ""), Silent),  # exit code 0
    (Ended(1, "", "error: x"), Lost),
    (Ended(2, "", "Traceback (most recent call last):\n"), Lost),
    (Ended(2, "", "x.py:1: RuntimeWarning: overflow\n"), Lost),
    (Ended(2, "", ""), Silent),  # not a word
])  # fmt: skip
def test_wrong_ends_are_found(ended, error):
    expect_end(Ended(2, "", "error: so it is\n"), 2, "^error: ")
    with pytest.raises(error):
        expect_end(ended, 2, "^error: ")


def test_a_hang_is_found(tmp_path):
    with pytest.raises(Lost, match="hangs"):
        Training(tmp_path, prepare=lambda: before_step(1, lambda _: __import__("time").sleep(60))).wait(timeout=2)


def test_a_traceback_is_an_exit_code_and_a_text(tmp_path):
    def fail(_model):
        raise KeyError("planted")

    ended = train(tmp_path, prepare=lambda: before_step(1, fail))
    assert ended.code == 1 and "Traceback" in ended.err and "planted" in ended.err


def test_the_smallest_input_that_fails_is_shown():
    def use(_directory, number):
        if number > 1000:
            raise KeyError("planted")
        if number > 500:
            raise UserError("one line")

    with pytest.raises(Lost, match=r"1001: KeyError: 'planted' \(in .*use\)"):
        try_inputs(st.integers(0, 10**6), use, 200, seed=1)
    assert try_inputs(st.integers(0, 1000), use, 50, seed=1) == 50


def test_messages_of_several_lines_are_found():
    def use(_directory, _number):
        raise UserError("two\nlines")

    with pytest.raises(Lost, match="several lines"):
        try_inputs(st.integers(), use, 10, seed=1)


# ------------------------------------------------------------------------------------------------------- faults in a fork


def test_operations_are_counted_and_fail(tmp_path):
    def write(fault=None, at=None):
        plant(tmp_path / "log", fault, at, tmp_path / "journal")

    assert train(tmp_path, {"-x": 2}, write).code == 0
    done = operations(tmp_path / "journal")
    renamed = [name for operation, name in done if operation == "replace"]
    assert renamed[-1] == "DONE_00000002" and {"model_00000002.bin", "state_00000002_00000.bin"} <= set(renamed)
    assert ("unlink", "DONE_00000002") in done and ("fsync", "log") in done
    first_write = next(n for n, (name, file) in enumerate(done) if name == "write" and "model_00000002" in file)
    other = tmp_path / "other"
    other.mkdir()
    failed = train(other, {"-x": 2}, lambda: plant(other / "log", fails(errno.ENOSPC), first_write))
    assert failed.code == 1 and "No space left" in failed.err


def test_half_a_write_is_written(tmp_path):
    training = train(tmp_path, {"-x": 2}, lambda: plant(tmp_path / "log", on(("write",), kill_halfway, "*state*", 1)))
    (state,) = (tmp_path / "log").glob(".state*")
    assert training.code == -9 and 1024 < state.stat().st_size < 100_000


@pytest.mark.parametrize("damage", [*DAMAGE.values(), *HEADER_DAMAGE.values()])
def test_damage_changes_a_file(tmp_path, damage):
    path = tmp_path / "file"
    content = bytes(range(1, 251)) * 20
    for seed in range(20):
        path.write_bytes(content)
        damage(path, random.Random(seed))
        assert path.read_bytes() != content


def test_the_page_lists_all_drills():
    page = (ROOT / "docs" / "drills.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| \[(\w+)\]", page, re.MULTILINE)) == DRILLS
