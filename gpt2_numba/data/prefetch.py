"""Reading ahead: the next batch is read by a thread while the current step runs.

A batch that is not in memory yet costs a disk access, and a new shard costs a look at all its tokens. Neither should
hold up the device. One batch ahead is enough, because a step takes far longer than a batch.
"""

from concurrent.futures import ThreadPoolExecutor


class Prefetcher:
    """A DataLoader's batches in the same order, each read before it is asked for.

    loader   DataLoader; from now on it belongs to the thread, so leave it alone until `close`

    `next_batch`, `reset`, `state` and `load_state` do what the loader's own do, as if nothing were read ahead. An error
    of the thread (a damaged shard, say) is raised by the call of `next_batch` that was to give that batch.

    Use it in a `with` statement, or call `close`. A program that ends without that, by Ctrl-C for instance, waits no
    longer than the batch in hand takes.
    """

    def __init__(self, loader):
        self.loader = loader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._read_ahead()

    def next_batch(self):
        """Return (inputs, targets), int32 (B, T) each, and begin to read the batch after it."""
        batch = self._pending.result()
        self._read_ahead()
        return batch

    def state(self):
        """Return the LoaderState before the batch that `next_batch` gives next."""
        return self._state

    def reset(self):
        """Begin an epoch, as the loader's own `reset`."""
        # The batch that was read ahead may have begun the next epoch, with draws of its own: take that back first.
        self._take_back()
        self.loader.reset()
        self._read_ahead()

    def load_state(self, state):
        """Go on from `state`. Raises UserError, and goes on as before, if it is another loader's."""
        self._take_back()
        try:
            self.loader.load_state(state)
        finally:
            self._read_ahead()

    def close(self):
        """End the thread, after the batch that it has in hand; no batch can be had after that."""
        self._thread.shutdown()

    def _read_ahead(self):
        self._state = self.loader.state()
        self._pending = self._thread.submit(self.loader.next_batch)

    def _take_back(self):
        """Wait for the thread, then set the loader back to before the batch that it has read."""
        self._pending.exception()  # waits; an error belongs to a batch that nobody will ask for now
        self.loader.load_state(self._state)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
