"""Counts accesses: how many the busiest thread makes, and how much memory a warp moves for them.

The hardware moves global memory in pieces of 32 bytes, called sectors here, for the 32 threads of a warp together. If they read 32
neighbouring float32 that is four sectors; if each reads from another row, 32.

Shared memory consists of 32 banks, a word of four bytes from each at a time: word i is in bank i % 32. Where threads of a warp want different
words of one bank, they take turns.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

WARP_SIZE, SECTOR_BYTES, BANKS, WORD_BYTES = 32, 32, 32, 4


@dataclass(frozen=True)
class Counts:
    """Accesses of the busiest thread: how many elements it reads and writes, each time that it does."""

    global_reads: int = 0
    global_writes: int = 0
    shared_reads: int = 0
    shared_writes: int = 0


def busiest_thread(record):
    """The Counts of a watching.Record: for each kind of access, that of the thread with most of it."""
    counts = Counter((_kind(touch), touch.launch, touch.block, touch.thread_id) for touch in record.touches)
    most = Counter()
    for (kind, *_), count in counts.items():
        most[kind] = max(most[kind], count)
    return Counts(**most)


def _kind(touch):
    return f"{'shared' if touch.is_shared else 'global'}_{'reads' if touch.is_read else 'writes'}"


def warp_accesses(touches):
    """Groups of touches that a warp makes together: lists of Touches, in the order of the program.

    The k-th time that a thread comes to an access belongs together with the k-th time of the other threads of its warp.
    """
    times, groups = Counter(), defaultdict(list)
    for touch in touches:
        access = touch.launch, touch.block, touch.file, touch.place, touch.memory, touch.is_read
        time = times[access, touch.thread_id]
        times[access, touch.thread_id] += 1
        groups[access, touch.thread_id // WARP_SIZE, time].append(touch)
    return list(groups.values())


def sectors(touches):
    """The sectors of global memory that these touches need, by number, counted from the start of their array."""
    return {
        sector for touch in touches for sector in range(touch.offset // SECTOR_BYTES, (touch.offset + touch.nbytes - 1) // SECTOR_BYTES + 1)
    }


def transactions(record):
    """Sectors of global memory that all warps move, reads and writes."""
    return sum(len(sectors(group)) for group in warp_accesses(touch for touch in record.touches if not touch.is_shared))


def bank_turns(touches):
    """How many turns a warp's access to shared memory takes: the most different words in one bank."""
    words = {touch.offset // WORD_BYTES for touch in touches}
    return max(Counter(word % BANKS for word in words).values())


def format_counts(record, least=None, taken=None):
    """The table of the busiest thread's accesses, beside the least possible; and the turns of shared memory, if there are conflicts.

    taken: the Counts of the exercise's solution, if it takes more than the least.
    """
    counts = busiest_thread(record)
    columns = {"": counts} | ({"least possible": least} if least else {}) | ({"the solution": taken} if taken else {})
    lines = ["accesses of the busiest thread" + "".join(f"{title:>17}" for title in columns if title)]
    for kind in vars(counts):
        numbers = [getattr(column, kind) for column in columns.values()]
        if any(numbers):
            lines.append(f"  {kind.replace('_', ' '):<20}{numbers[0]:8}" + "".join(f"{number:17}" for number in numbers[1:]))
    turns = max((bank_turns(group) for group in warp_accesses(touch for touch in record.touches if touch.is_shared)), default=1)
    if turns > 1:
        lines.append(f"  bank conflicts: a warp's access to shared memory takes up to {turns} turns, where 1 would do")
    return "\n".join(lines)
