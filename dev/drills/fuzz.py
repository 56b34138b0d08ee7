"""All readers and command lines with generated inputs, by hypothesis: only a UserError may come out, or a command's usual end.

The inputs of a reader are damaged versions of a right file, and arbitrary ones. A failure shows the smallest input that hypothesis finds.
"""

import contextlib
import io
import logging
import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from pathlib import Path

from dev.drills import fuzz_commands, fuzz_folders, fuzz_readers
from dev.drills.report import Lost, Needs, Try
from gpt2_numba.errors import UserError

HANG = 5  # seconds that one input may take; the usual one takes a millisecond
MEMORY = 8 << 30  # bytes of address space in which a file that is none must be recognised
MOST_SHOWN = 200  # characters of an input
LAST_FRAMES = 5  # of a traceback


def tries(scale):
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise Needs("hypothesis: pip install -e '.[test]'") from None
    files = fuzz_readers.targets() + fuzz_folders.targets()
    return [
        *(_fuzzed(name, strategy, use, scale.random(1600, short=40)) for name, strategy, use in files + fuzz_commands.targets()),
        *(Try(f"{name} is {what}", _not_a_file(use, make)) for name, _, use in files for what, make in NOT_FILES.items()),
    ]


def _fuzzed(name, strategy, use, count):
    return Try(f"{count} inputs of {name}", lambda _directory, rng: try_inputs(strategy, use, count, rng.randrange(2**32)))


def try_inputs(strategy, use, count, seed):
    """Call use(directory, input) for `count` inputs; returns count. Raises Lost with the smallest input that raises anything."""
    import hypothesis

    failure = None

    def check(value):
        nonlocal failure
        directory = Path(tempfile.mkdtemp(prefix="fuzz_"))
        try:
            with quiet(), time_limit():
                use(directory, value)
        except UserError as error:
            if "\n" in str(error):
                failure = value, f"a message of several lines: {error}"
                raise AssertionError from None
        except Exception as error:
            failure = value, where(error)
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    settings = hypothesis.settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    try:
        with quiet():
            hypothesis.seed(seed)(settings(hypothesis.given(strategy)(check)))()
    except BaseException:
        if failure is None:
            raise
        raise Lost(f"{_shown(failure[0])}: {failure[1]}") from None
    return count


def where(error):
    """An exception and the last functions it came through, in one line."""
    frames = traceback.extract_tb(error.__traceback__)[-LAST_FRAMES:]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {str(error)[:MOST_SHOWN]} (in {places})"


def _shown(value):
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text)} characters)"


@contextlib.contextmanager
def quiet():
    """Without output."""
    logging.disable()  # Matplotlib's about fonts
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def time_limit():
    """Raises TimeoutError after HANG seconds."""

    def stop(*_):
        raise TimeoutError(f"it hangs, for {HANG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


NOT_FILES = {
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a character device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "missing": lambda path: None,
    "a name of 300 characters": lambda path: path.with_name("x" * 300),
}


def _not_a_file(use, make):
    """In a process of its own, since it may take all memory or never return."""

    def run(directory, _rng):
        path = directory / "input"
        made = make(path)
        path = made if isinstance(made, Path) else path
        answer = directory / "answer.txt"
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(HANG)
            answer.write_text(_what_comes_out(lambda: use(directory, path)))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise Lost(f"it hangs, for {HANG} s, or is killed (status {status})")
        if answer.read_text():
            raise Lost(answer.read_text())

    return run


def _what_comes_out(call):
    """Call it. Returns what is wrong with the exception it raises; "" if it is a UserError of one line, or none."""
    try:
        with quiet():
            call()
    except UserError as error:
        return f"a message of several lines: {error}" if "\n" in str(error) else ""
    except BaseException as error:
        return where(error)
    return ""
