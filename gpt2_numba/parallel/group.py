"""All processes of a run, as each of them sees it. Alone, or by MPI on host arrays (mpi_group.py), or by NCCL between GPUs (nccl_group.py).

Every process must call the same functions in the same order, with arrays of the same sizes: each waits for the others.

Numbers go between the arrays of the processes, in place. With 3 ranks, and bounds [0, 2, 4, 6]:

                       rank 0          rank 1          rank 2
    before             a b c d e f     g h i j k l     m n o p q r
    all_reduce         all ranks: a+g+m  b+h+n  c+i+o  d+j+p  e+k+q  f+l+r
    reduce_scatter     a+g+m b+h+n ?   ? c+i+o d+j+p ? ? e+k+q f+l+r
    all_gather         all ranks: a b i j q r

Words go through rank 0 (meeting.py).
"""

import socket

from gpt2_numba.parallel.meeting import Meeting


class Group:
    """What the three have in common, and the interface of each.

    rank, ranks    this process, and how many there are
    host           its host's name
    names          list by rank: "rank 3 on host a17, GPU 1 (NVIDIA H200)"
    watch          None, or a parallel/watch.py Watch, which ends this process when another one fails or hangs
    """

    def __init__(self, meeting, place):
        """meeting: a Meeting. place: what the names say of where on its host this process computes. All ranks must come here."""
        self.rank, self.ranks = meeting.rank, meeting.ranks
        self.host = socket.gethostname()
        places = meeting.gather([self.host, place])
        self.names = [f"rank {rank} on host {host}, {place}" for rank, (host, place) in enumerate(places)]
        meeting.names = self.names
        self._meeting, self.watch = meeting, None

    def connect(self):
        """Prepare the ways that the numbers go. Once, when the watch is there, since a rank that does not come is waited for."""

    def begin(self):
        """What the group is asked from here on waits for all that the compute stream (gpu/backend.py) has been asked so far."""

    def end(self):
        """What the compute stream is asked from here on waits for all that the group has been asked so far."""

    def all_reduce(self, arrays):
        """Replace each array by its sum over the ranks, which has the same bits at every rank.

        arrays  [+] list of 1-D arrays: float32, or bfloat16 kept in uint16
        """
        raise NotImplementedError

    def reduce_scatter(self, pieces):
        """Sum arrays over the ranks, each part at the rank that it belongs to.

        pieces  list of (array, bounds): a 1-D array as above, of which [+] part r, [bounds[r], bounds[r + 1]), becomes the sum at rank r.
                [w] The other parts are undefined afterwards. bounds: ranks + 1 ascending positions, the same at every rank
        """
        raise NotImplementedError

    def all_gather(self, pieces):
        """Give each rank's part of an array to all the others.

        pieces  as above: at rank r, part r is [r], the other parts are [w]
        """
        raise NotImplementedError

    def gather(self, thing):
        """Every rank's thing, at every rank: a list by rank. thing: made of JSON's types (see Meeting.gather)."""
        self._come_together()
        return self._meeting.gather(thing)

    def barrier(self):
        """Return when all processes are here. What the GPUs have been asked may still be under way."""
        self.gather(None)

    def sum(self, values):
        """A list of floats, each summed over the ranks, in rank order: the same bits at every rank. For few numbers, now and then."""
        first, *others = self.gather([float(value) for value in values])
        for other in others:
            first = [total + value for total, value in zip(first, other)]
        return first

    def doing(self, what):
        """Tell the watch what this process is about to do, as text: it is alive."""
        if self.watch:
            self.watch.doing(what)

    def fail(self, message):
        """Tell all the others that this process has failed. They end at once, with this message and this rank's name."""
        if self.watch:
            self.watch.failed(message)

    def _come_together(self):
        """Tell the watch that this process comes to a point where it may wait for the others."""
        if self.watch:
            self.watch.entering_collective()

    def close(self):
        """An orderly end, to which all processes must come."""
        self.barrier()
        if self.watch:
            self.watch.close()
        self._meeting.close()


class Alone(Group):
    """The only process: there is nobody to tell anything."""

    def __init__(self, place="CPU"):
        super().__init__(Meeting(0, 1), place)

    def all_reduce(self, arrays):
        pass

    def reduce_scatter(self, pieces):
        pass

    def all_gather(self, pieces):
        pass
