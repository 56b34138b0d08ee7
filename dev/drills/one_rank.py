"""The trainer with a fault in one of its processes:  mpirun -np 2 python dev/drills/one_rank.py FAULT RANK STEP FLAG VALUE ...

FAULT is kill, stop, fail, exit, usr1 or none; it happens in that rank, within that step (from 0).
"""

import os
import signal
import sys

from dev.drills.planting import in_step, send_self
from gpt2_numba import train


def _fail(_model):
    raise MemoryError("a drill")


ACTIONS = {
    "kill": send_self(signal.SIGKILL), "stop": send_self(signal.SIGSTOP), "usr1": send_self(signal.SIGUSR1),
    "fail": _fail, "exit": lambda _model: os._exit(3), "none": lambda _model: None,
}  # fmt: skip


def main(fault, rank, step, *flags):
    if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == rank:
        in_step(int(step), ACTIONS[fault])
    return train.main(list(flags))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
