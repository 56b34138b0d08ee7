"""The trainer's main program in a process that was forked: it runs, and ends the process, as under Python's own -m."""

import contextlib
import faulthandler
import os
import runpy
import signal
import sys
import threading
import traceback

from gpt2_numba import plot
from gpt2_numba.console import end_at_ctrl_c

SHOW_STACKS = signal.SIGUSR2  # makes a training write to stderr where its threads are


def be_the_trainer(directory, argv, descriptors, prepare, picture):
    """Run the trainer in this process, in `directory`, with its stdout and stderr on two descriptors, and exit with its code.

    prepare  called before the main program; None: nothing        picture  False: the losses are not drawn
    """
    code = 1
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_at_ctrl_c()  # as importing the package does
        os.chdir(directory)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        faulthandler.register(SHOW_STACKS, file=2)
        sys.argv = ["gpt2_numba.train", *argv]
        del sys.modules["gpt2_numba.train"]  # its main program runs, with the modules it imports as they are here
        if not picture:
            plot.plot_losses = lambda *_, **__: None
        if prepare:
            prepare()
        code = _exit_code(lambda: runpy.run_module("gpt2_numba.train", run_name="__main__", alter_sys=True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading._shutdown()  # waits for threads
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            code = code or 120  # Python's for this
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _exit_code(program):
    try:
        program()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.stderr.write(traceback.format_exc())
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0
