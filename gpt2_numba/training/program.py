"""The program around a training: joining the other processes, and an exit code for every way in which it can end."""

import sys
import traceback
import warnings

from gpt2_numba.command_line import one_line
from gpt2_numba.data.arriving_shards import StoppedWaiting
from gpt2_numba.errors import SharedError, UserError
from gpt2_numba.gpu.guards import GuardError
from gpt2_numba.parallel.group import only_first_prints
from gpt2_numba.parallel.start import join
from gpt2_numba.parallel.watch import end_process
from gpt2_numba.training.endings import FAILED, STOPPED, Ending
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings


def run_training(train, argv):
    """Call train(settings, group) as the command line asks. Returns the exit code.

    0    all steps are done
    1    a checkpoint that was due at the end or at a stop was not written, the run has diverged, a process was lost, or a guard has found
         a wrong launch (--guards on); what is in memory then is not saved
    2    a user's mistake, or data that can no longer be read
    130  stopped by a signal or a closed pipe
    """
    warnings.filterwarnings(
        "ignore", "(overflow|invalid value|divide by zero) encountered", RuntimeWarning
    )  # the trainer reports it better
    settings = choose_machine(parse_settings(argv))
    group, code = join(settings, settings.device), 0
    try:
        with only_first_prints(group):
            train(settings, group)
    except Ending as ending:
        if group.rank == 0:
            print(ending, file=sys.stderr)
        code = ending.code
    except StoppedWaiting as stopped:
        print(f"{stopped}; with a log directory, the last whole step is saved: add -y 1 to the command to continue", file=sys.stderr)
        if group.ranks > 1:
            group.fail(one_line(stopped))
            end_process(STOPPED)
        code = STOPPED
    except SharedError:
        group.close()
        if group.rank == 0:
            raise
        return 2
    except GuardError as found:
        print(f"error: {one_line(found)}", file=sys.stderr)
        if group.ranks > 1:
            group.fail(one_line(found))
            end_process(FAILED)
        code = FAILED
    except KeyboardInterrupt:
        group.fail("stopped at once, by Ctrl-C")
        print("\nstopped at once", file=sys.stderr)
        if group.ranks == 1:
            return STOPPED
        end_process(STOPPED)
    except BaseException as error:
        if group.ranks == 1:
            raise
        if isinstance(error, UserError):  # of this process alone
            print(f"error: {one_line(error)}", file=sys.stderr)
            group.fail(one_line(error))
            end_process(2)
        traceback.print_exc()  # first: as soon as the others end, the launcher kills this process, too
        group.fail(f"{type(error).__name__}: {error}")
        end_process(1)
    group.doing("ending")
    group.close()
    return code
