"""Prefetching: a thread reads the next batch while the current step runs.

A batch that is not in memory costs a disk access, and a new shard costs a scan of all its tokens. Neither should stall the device. One
batch ahead is enough, because a step takes far longer than reading a batch.
"""

from concurrent.futures import ThreadPoolExecutor

from gpt2_numba.data.arriving_shards import ArrivingShard


class Prefetcher:
    """The batches of a DataLoader in the same order, each read in advance.

    loader   a DataLoader; it belongs to the thread until `close`, so do not use it

    `next_batch`, `reset`, `state` and `load_state` behave like the loader's own, as if nothing were read ahead. An error in the thread (a
    damaged shard, say) is raised by the call of `next_batch` that would have returned that batch, and again by later calls. `state` is then
    still the one before that batch, so a checkpoint can be written. `problem` is the loader's.

    Use it in a `with` statement, or call `close`. A program that ends without either, after Ctrl-C for instance, waits only for the batch
    being read.
    """

    def __init__(self, loader):
        self.loader = loader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._read_ahead()

    @property
    def problem(self):
        """The UserError about a shard found wrong while the first steps run, or None."""
        return self.loader.problem

    def next_batch(self):
        """Return (inputs, targets), int32 (B, T) each, and start reading the batch after it. Raises UserError as the loader does."""
        batch = self._pending.result()
        self._read_ahead()
        return batch

    def state(self):
        """Return the LoaderState before the batch that `next_batch` returns next."""
        return self._state

    def reset(self):
        """Begin an epoch, like the loader's own `reset`."""
        # The batch read ahead may have begun the next epoch and drawn its permutations: undo that first.
        self._rewind()
        self.loader.reset()
        self._read_ahead()

    def load_state(self, state):
        """Continue from `state`. Raises UserError, and continues as before, if it does not fit this loader."""
        try:
            self._rewind()
            self.loader.load_state(state)
        finally:
            self._read_ahead()

    def stop_waiting(self):
        """Wait for no shard that is still arriving: a batch that needs one raises StoppedWaiting. May be called in a signal handler."""
        for shard in self.loader.shards:
            if isinstance(shard, ArrivingShard):
                shard.arrivals.give_up()

    def close(self):
        """End the thread after the batch it is reading; no more batches can be read."""
        self.stop_waiting()
        self._thread.shutdown()

    def _read_ahead(self):
        self._state = self.loader.state()
        self._pending = self._thread.submit(self.loader.next_batch)

    def _rewind(self):
        """Wait for the thread, then restore the loader's position before the batch read ahead."""
        self._pending.exception()  # waits; an error belongs to a batch that will not be used
        self.loader.load_state(self._state)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
