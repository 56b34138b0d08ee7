"""Requests to stop, in every phase of a run: SIGINT, SIGTERM, SIGHUP and SIGUSR1.

The run writes a checkpoint and ends with one line and the exit code 130; resumed, it has the bits of an undisturbed run. Before its first
step there is nothing to save: it ends at once, with that code or by the signal.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dev.drills.checkpoints import expect_end, expect_resumable, expect_same_bits
from dev.drills.file_operations import on, plant
from dev.drills.planting import before_call, before_step, in_step, send_self
from dev.drills.questions import write_questions
from dev.drills.report import Lost, Needs, Try
from dev.drills.training import Training, command_line, start, train, write_data

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
EVERYTHING = {"-v": 4, "-h": 1, "--eval-file": "questions.bin", "-s": 4, "-g": 4}
STOPPED = 130


def _in_file_operation(pattern, action, number=0):
    plant(Path("log"), on(("write",), lambda *_: action(), pattern, number))


# phase -> function (action) that makes the action happen in this phase
PHASES = {
    "the first step": lambda action: before_step(0, action),
    "a step's forward pass": lambda action: before_step(5, action),
    "a step's backward pass": lambda action: in_step(5, action),
    "a checkpoint's model file": lambda action: _in_file_operation("*model_00000004*", action),
    "a checkpoint's state file": lambda action: _in_file_operation("*state_00000004*", action),
    "the last checkpoint": lambda action: _in_file_operation("*state_00000012*", action),
    "a line of main.log": lambda action: _in_file_operation("main.log", action, number=4),
    "validation": lambda action: before_call("gpt2_numba.training.evaluation", "validate", action, number=1),
    "the first validation": lambda action: before_call("gpt2_numba.training.evaluation", "validate", action),
    "the last validation": lambda action: before_call("gpt2_numba.training.evaluation", "validate", action, number=3),
    "questions": lambda action: before_call("gpt2_numba.training.evaluation", "answer_questions", action),
    "sampling": lambda action: before_call("gpt2_numba.training.evaluation", "sample", action),
    "the picture": lambda action: before_call("gpt2_numba.plot", "plot_losses", action),
}
NOTHING_DONE = ("the first validation",)  # phases before the first step, in which there is nothing to save
MAY_END_WELL = ("the last checkpoint", "the last validation", "the picture")  # all steps may be done


def tries(scale):
    phases = [(phase, signum) for phase in PHASES for signum in SIGNALS]
    starts = [(function, signum) for function in ("open_start", "make_loaders", "make_model", "load_start") for signum in SIGNALS]
    return [
        *(Try(f"{signum.name} during {phase}", _during(phase, signum)) for phase, signum in scale.some(phases, 13)),
        *(Try(f"SIGINT twice during {phase}", _twice(phase)) for phase in scale.some(PHASES, 4)),
        *(Try(f"{signum.name} in {function}", _while_preparing(function, signum)) for function, signum in scale.some(starts, 2)),
        Try("SIGHUP under nohup", _ignored),
        *(Try(f"{signum.name} while stdout is blocked", _while_blocked(signum)) for signum in scale.some(SIGNALS, 1)),
        *(Try("a signal at a random moment", _at_random) for _ in range(scale.random(80, short=4))),
        *(Try("SIGINT at a random moment of the start", _while_importing) for _ in range(scale.random(24, short=2))),
    ]


def _train(directory, prepare, changes=()):
    write_questions(directory / "questions.bin")
    return train(directory, {**EVERYTHING, **dict(changes)}, prepare, picture=True)


def _during(phase, signum):
    def run(directory, _rng):
        ended = _train(directory, lambda: PHASES[phase](send_self(signum)))
        codes = (STOPPED, 0) if phase in MAY_END_WELL else (STOPPED,)
        if phase == "the picture":
            codes = (*codes, -signum)  # everything is saved: it may end like any program
        expect_end(ended, codes, *(["stopped"] if ended.code == STOPPED else []))
        if ended.code == STOPPED and phase not in NOTHING_DONE and not list((directory / "log").glob("DONE_*")):
            raise Lost(f"there is no checkpoint: {ended}")
        expect_resumable(directory)  # validations, questions and samples change no bit

    return run


def _twice(phase):
    """It stops at once: what is lost are the steps since the last checkpoint."""

    def run(directory, _rng):
        ended = _train(directory, lambda: PHASES[phase](send_self(signal.SIGINT, times=2)))
        expect_end(ended, (STOPPED, 0) if phase in MAY_END_WELL else STOPPED, *(["stopped"] if ended.code == STOPPED else []))
        expect_resumable(directory)

    return run


def _while_preparing(function, signum):
    def run(directory, _rng):
        ended = _train(directory, lambda: before_call("gpt2_numba.training.preparation", function, send_self(signum)))
        expect_end(ended, STOPPED if signum == signal.SIGINT else (STOPPED, -signum))
        if ended.code == STOPPED and not ended.err:
            raise Lost(f"it says nothing: {ended}")
        expect_resumable(directory)

    return run


def _ignored(directory, _rng):
    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before_step(5, send_self(signal.SIGHUP))

    expect_end(_train(directory, prepare), 0)
    expect_same_bits(directory)


def _while_blocked(signum):
    """The reader of a pipe pauses, so that a print never returns; then a signal arrives, and the reader goes on."""

    def run(directory, _rng):
        reading, writing = os.pipe()
        training = Training(directory, {"-x": 2000, "-n": 0}, streams=(writing, None))
        os.close(writing)
        if not Path("/proc").exists():
            raise Needs("/proc")
        _wait_until_blocked(training)
        training.send(signum)
        time.sleep(0.05)
        while os.read(reading, 1 << 16):
            pass
        os.close(reading)
        expect_end(training.wait(), STOPPED, "stopped")
        if not list((directory / "log").glob("DONE_*")):
            raise Lost("there is no checkpoint")

    return run


def _wait_until_blocked(training):
    """Wait until a training has begun to compute, and then computes nothing for a while."""
    until, before = time.monotonic() + 20, None
    while time.monotonic() < until:
        time.sleep(0.3)
        used = _processor_time(training.pid)
        if used == before and used > 0.2:
            return
        before = used
    raise Lost("the training does not wait for the reader of its pipe")


def _processor_time(pid):
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _at_random(directory, rng):
    training, signum = Training(directory, {"-x": 40}), rng.choice(SIGNALS)
    time.sleep(rng.uniform(0, 0.5))
    training.send(signum)
    ended = training.wait()
    began, over = "step    1/40" in ended.out, "loss.png" in ended.out  # before and after, it ends like any program
    expect_end(ended, (STOPPED, 0) if (began and not over) or signum == signal.SIGINT else (STOPPED, 0, -signum))
    expect_resumable(directory, {"-x": 40})


def _while_importing(directory, rng):
    """A real start. Before the first line of the package runs, Python itself answers, with a traceback of its own modules."""
    write_data(directory)
    command = [sys.executable, "-m", "gpt2_numba.train", *command_line()]
    process = start(directory, command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(rng.uniform(0.1, 2.0))
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    if "Traceback" in err and "gpt2_numba" in err:
        raise Lost(f"a traceback: {err[-600:]!r}")
    if process.returncode not in (0, STOPPED, -signal.SIGINT):
        raise Lost(f"exit code {process.returncode}: {err[-600:]!r}")
    if process.returncode == STOPPED and not err:
        raise Lost("it says nothing")
    expect_resumable(directory)
