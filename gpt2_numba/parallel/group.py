"""All processes of a run, as each of them sees it: alone, by MPI on host arrays (mpi_group.py), or by NCCL between GPUs (nccl_group.py).

Every process must call the same functions in the same order, with arrays of the same sizes: each call waits for the others.

Collectives work on arrays in place. With 3 ranks, and bounds [0, 2, 4, 6]:

                       rank 0          rank 1          rank 2
    before             a b c d e f     g h i j k l     m n o p q r
    all_reduce         all ranks: a+g+m  b+h+n  c+i+o  d+j+p  e+k+q  f+l+r
    reduce_scatter     a+g+m b+h+n ?   ? c+i+o d+j+p ? ? e+k+q f+l+r
    all_gather         all ranks: a b i j q r

Values that are not arrays go through rank 0 (meeting.py).
"""

import contextlib
import os
import socket

from gpt2_numba.parallel.meeting import Meeting


class Group:
    """The interface of the three, and what they share.

    rank, ranks    this process, and the number of processes
    host           the name of its host
    names          list by rank: "rank 3 on host a17, GPU 1 (NVIDIA H200)"
    watch          None, or a Watch (watch.py), which ends this process when another one fails or hangs
    """

    def __init__(self, meeting, device_label):
        """meeting: a Meeting. device_label: the device that this process computes on, for the names. All ranks must call it."""
        self.rank, self.ranks = meeting.rank, meeting.ranks
        self.host = socket.gethostname()
        labels = meeting.gather([self.host, device_label])
        self.names = [f"rank {rank} on host {host}, {label}" for rank, (host, label) in enumerate(labels)]
        meeting.names = self.names
        self._meeting, self.watch = meeting, None

    def connect(self):
        """Set up the collectives. Call it once, after the watch is set: it waits for all ranks, and one of them may never arrive."""

    def begin(self):
        """Collectives queued from here on wait for everything queued on the compute stream (gpu/backend.py) so far."""

    def end(self):
        """Work queued on the compute stream from here on waits for all collectives queued so far."""

    def all_reduce(self, arrays):
        """Replace each array by its sum over the ranks, with the same bits at every rank.

        arrays  [+] list of 1-D arrays: float32, or bfloat16 stored as uint16
        """
        raise NotImplementedError

    def reduce_scatter(self, pieces):
        """Sum arrays over the ranks, each part at its own rank.

        pieces  list of (array, bounds): in a 1-D array as above, part r, [bounds[r], bounds[r + 1]), becomes the sum at rank r [+];
                the other parts are undefined afterwards [w]. bounds: ranks + 1 ascending positions, the same at every rank
        """
        raise NotImplementedError

    def all_gather(self, pieces):
        """Copy each rank's part of an array to all the others.

        pieces  as above: at rank r, part r is read [r], the other parts are overwritten [w]
        """
        raise NotImplementedError

    def gather(self, value):
        """The values of all ranks, at every rank: a list by rank. value: of JSON's types (see Meeting.gather)."""
        self._enter_collective()
        return self._meeting.gather(value)

    def barrier(self):
        """Wait until all processes call it. Work queued on the GPUs may still be running."""
        self.gather(None)

    def sum(self, values):
        """A list of floats, each summed over the ranks in rank order: the same bits at every rank. Slow: for a few values now and then."""
        totals, *others = self.gather([float(value) for value in values])
        for other in others:
            totals = [total + value for total, value in zip(totals, other)]
        return totals

    def doing(self, what):
        """Report progress to the watch. what: what this process does next, as text."""
        if self.watch:
            self.watch.doing(what)

    def fail(self, message):
        """Report to all the others that this process has failed. They end at once, with this message and this rank's name."""
        if self.watch:
            self.watch.failed(message)

    def _enter_collective(self):
        """Report to the watch that this process may now wait for the others."""
        if self.watch:
            self.watch.entering_collective()

    def close(self):
        """An orderly end. All processes must call it."""
        self.barrier()
        if self.watch:
            self.watch.close()
        self._meeting.close()


class Alone(Group):
    """The only process: collectives do nothing."""

    def __init__(self, device_label="CPU"):
        super().__init__(Meeting(0, 1), device_label)

    def all_reduce(self, arrays):
        pass

    def reduce_scatter(self, pieces):
        pass

    def all_gather(self, pieces):
        pass


@contextlib.contextmanager
def only_first_prints(group):
    """Discards what any process but the first prints."""
    if group.rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
