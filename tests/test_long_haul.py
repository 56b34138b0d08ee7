"""dev.drills.long_haul: a short one is flat and has the same bits; what grows, and other bits, are found."""

import subprocess
import sys
from pathlib import Path

import pytest

from dev.drills import long_haul

ROOT = Path(__file__).resolve().parents[1]
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")


@linux_only
def test_a_short_one():
    """In a process of its own, which may fork."""
    command = [sys.executable, "-m", "dev.drills.long_haul", "--steps", "300", "--every", "0.05", "--rounds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert "2 rounds of 3 steps" in done.stdout and done.stdout.rstrip().endswith("the same bits"), done.stdout + done.stderr
    assert "| open files " in done.stdout and "| threads " in done.stdout and done.stderr == ""


@linux_only
@pytest.mark.parametrize("program, code", [
    ("import time; time.sleep(20)", 0),
    ("import time\nfiles = []\nwhile True: files.append(open('/dev/null')); time.sleep(0.05)", 1),
])  # fmt: skip
def test_a_process_that_already_runs(program, code, capsys):
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        assert long_haul.main(["--pid", str(process.pid), "--minutes", "0.02", "--every", "0.05"]) == code
        process.kill()
    assert ("| GROWS |" in capsys.readouterr().out) == bool(code)


@linux_only
def test_a_process_that_has_ended_is_told(capsys):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert long_haul.main(["--pid", str(process.pid), "--minutes", "1"]) == 2
    assert "samples" in capsys.readouterr().err


def samples_of(name, values):
    flat = {"host memory, MiB": 100.0, "open files": 6, "threads": 4}
    return [flat | {name: value} for value in values]


@pytest.mark.parametrize("name, values, flat", [
    ("host memory, MiB", [90] * 9 + [100.0] * 9 + [100.5] * 9, True),  # grows at the start, and by what an allocator keeps
    ("host memory, MiB", [100 + i / 5 for i in range(27)], False),
    ("open files", [6] * 18 + [7] * 9, False),
    ("open files", [6, 7, 6] * 9, True),  # a file is open now and then
    ("threads", [4] * 15 + [5] * 12, False),
])  # fmt: skip
def test_what_grows_is_found(name, values, flat):
    rows = {row[0]: row[3] for row in long_haul.growth(samples_of(name, values))}
    assert rows == {"host memory, MiB": True, "open files": True, "threads": True} | {name: flat}


def test_other_bits_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(long_haul, "train", lambda *_, **__: type("Ended", (), {"code": 0}))
    monkeypatch.setattr(long_haul, "last_checkpoint", lambda path: {"model": b"1" if "once" in str(path) else b"2"})
    assert not long_haul.save_and_resume(tmp_path, 2)
    assert "model: 1 of 1 bytes differ" in capsys.readouterr().out
