"""No print fails, and none ends a program without need; mistakes and Ctrl-C give one line. Programs of a line or two, each in a process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_numba import console
from gpt2_numba.command_line import Parser, exit_code, one_line
from gpt2_numba.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full, which is always full, exists on Linux")


def start(body, redirect="", outlives_pipe=False, **environment):
    """A process whose program is `body`, the lines of a function main(argv); redirect: how a shell starts it."""
    lines = "\n ".join(body.splitlines())
    code = f"""
import sys, threading
from gpt2_numba import console
from gpt2_numba.command_line import exit_code, main_program
from gpt2_numba.errors import UserError
def main(argv):
 {lines}
console.end_at_ctrl_c()
main_program(main, outlives_pipe={outlives_pipe})
"""
    environment = {**{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}, **environment}
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def result(process):
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


PRINT_MUCH = "for n in range(100_000): print(n)"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_short_program_ends_quietly_when_its_reader_goes_away(unbuffered):
    process = start(f"{PRINT_MUCH}\nprint('went on', file=sys.stderr)", PYTHONUNBUFFERED=unbuffered)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 141)


def test_a_trainer_notices_that_its_reader_has_gone_away_and_goes_on():
    process = start(f"{PRINT_MUCH}\nprint('went on', console.pipe_closed(), file=sys.stderr)\nreturn 130", outlives_pipe=True)
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("went on True\n", 130)


def test_a_pipe_that_another_thread_finds_closed_ends_the_program_at_its_own_print():
    body = (
        f"def much():\n    {PRINT_MUCH}\n"
        "thread = threading.Thread(target=much)\n"
        "thread.start(); thread.join()\n"
        "print('the main thread, too')\n"
        "print('went on', file=sys.stderr)"
    )
    process = start(body)
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 141)


@needs_dev_full
@pytest.mark.parametrize("outlives_pipe", [False, True])
def test_a_full_disk_is_one_warning_and_the_exit_code_remains(outlives_pipe):
    code, _, err = result(start("print(1); print(2, end='')\nreturn 3", "> /dev/full", outlives_pipe))
    assert code == 3 and err == "warning: stdout cannot be written (No space left on device): what is printed there is lost\n"


@needs_dev_full
@pytest.mark.parametrize(
    "redirect, out",
    [
        ("2> /dev/full", "warning: stderr cannot be written (No space left on device): what is printed there is lost\n"),
        ("> /dev/full 2>&1", ""),
        ("2>&-", ""),
    ],
)
def test_a_mistake_has_its_exit_code_even_if_nobody_can_read_of_it(redirect, out):
    body = "def run(argv): raise UserError('a\\nb')\nprint()\nreturn exit_code(run, argv)"
    code, printed, _ = result(start(body, redirect))
    assert (code, printed.lstrip("\n")) == (2, out)


def test_closed_streams_are_replaced_so_that_no_file_takes_their_number():
    """What a library writes to file descriptor 1 would otherwise end in a checkpoint."""
    body = "print('lost'); sys.stdout.flush()\nreturn open('/dev/null').fileno()"
    code, _, err = result(start(body, "<&- >&- 2>&-"))
    assert code > 2 and err == ""


@pytest.mark.parametrize("encoding, printed", [("ascii", r"\u03c0 \xfc \udc80"), ("cp1252", r"\u03c0 ü \udc80"), ("utf-8", r"π ü \udc80")])
def test_what_the_encoding_lacks_is_escaped(encoding, printed):
    process = start("print('π ü \\udc80')\nprint('π', file=sys.stderr)", PYTHONIOENCODING=encoding)
    out, err = process.stdout.buffer.read(), process.stderr.buffer.read()
    assert out.decode(encoding).strip() == printed
    assert err.decode(encoding).strip() == printed.split()[0] and process.wait(60) == 0


def test_each_line_is_written_at_once():
    process = start("print('ready')\nreturn sys.stdin.read() and 0")
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()


def test_a_non_blocking_pipe_loses_nothing():
    body = f"import os; os.set_blocking(1, False)\n{PRINT_MUCH}"
    process = start(body)
    first = process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):  # the pipe is full
        process.wait(0.3)
    lines = [first, *process.stdout]
    assert (process.wait(60), process.stderr.read()) == (0, "") and [int(line) for line in lines] == list(range(100_000))


def test_streams_that_are_not_files_remain(monkeypatch):
    """Notebooks have such streams."""

    class Cell:
        pass

    cell = Cell()
    monkeypatch.setattr(sys, "stdout", cell)
    monkeypatch.setattr(sys, "stderr", cell)
    console.prepare_streams()
    assert sys.stdout is cell and sys.stderr is cell


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("program", ["train", "plot", "check_model"])
def test_ctrl_c_during_the_imports_is_one_line(program, tmp_path):
    (tmp_path / "numpy.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", f"gpt2_numba.{program}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert result(process) == (130, "", "stopped by Ctrl-C while starting\n")


def test_later_ctrl_c_is_one_line_too():
    assert result(start("import signal\nsignal.raise_signal(signal.SIGINT)")) == (130, "", "stopped by Ctrl-C\n")


def test_a_ctrl_c_that_is_ignored_remains_so(monkeypatch):
    """As in a background job of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        console.end_at_ctrl_c()
        console.raise_at_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_importing_the_package_leaves_ctrl_c_alone():
    code = "import signal, gpt2_numba; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "True\n"


# --------------------------------------------------------------------------------------------------------------- mistakes


def test_an_error_is_one_line_whatever_is_in_it(capsys):
    def run(_):
        raise UserError("no file 'a\nb\x1b[31mc\td\u2028e\udc80 π'")

    assert exit_code(run, []) == 2
    assert capsys.readouterr().err == r"error: no file 'a\nb\x1b[31mc\td\u2028e\udc80 π'" + "\n"
    assert one_line("a plain message: ü, 'x'") == "a plain message: ü, 'x'"


@pytest.mark.parametrize("doc, description", [("First line.\n\nMore.", "First line."), (None, None)], ids=["docstring", "python -OO"])
def test_the_description_is_the_first_line_of_the_docstring(doc, description):
    assert Parser(prog="p", doc=doc).description == description
