"""Checking every token of every shard: the first shards at the start of a run, the rest while its first steps run.

A token outside the vocabulary, or a shard that cannot be read, should stop a run at its start, not in its second hour. But a hundred shards
of 200 MB take a minute or more to read, so a thread reads most of them while training begins.
"""

import threading

from gpt2_numba.errors import UserError

CHECKED_AT_START = 2**26  # tokens: 128 MB, read and checked in a fraction of a second


class ShardCheck:
    """The check of a loader's shards, each a Shard or a TokenArray, against `vocab_size` (see Shard.check).

    The first 2**26 tokens' worth of shards are checked before the constructor returns, by every rank. The others are divided among the
    ranks, and each checks its share in a thread, which never delays the end of the program.

    `problem` is the UserError of the first shard that the thread finds wrong, None until then. Raises UserError for the first shards.
    """

    def __init__(self, shards, vocab_size, rank=0, ranks=1):
        self.problem = None
        later, tokens = [], 0
        for shard in shards:
            tokens += len(shard)
            if tokens > CHECKED_AT_START:
                later.append(shard)
            else:
                shard.check(vocab_size)
        share = later[rank::ranks]
        if share:
            threading.Thread(target=self._check, args=(share, vocab_size), name="shard check", daemon=True).start()

    def _check(self, shards, vocab_size):
        try:
            for shard in shards:
                shard.check(vocab_size)
        except UserError as problem:
            self.problem = problem
        except Exception as error:
            self.problem = UserError(
                f"the token shards could not all be checked ({type(error).__name__}: {error}). Check the files and the disk"
            )
