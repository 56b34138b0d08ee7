"""Records what the threads of a kernel touch, in the simulator.

    with watch() as seen:
        kernel[1, 32](out, inp)
    print(seen.table())
    seen.draw("inp")

The race detector is on while it records.
"""

import functools
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from gpt2_numba.gpu.backend import SIMULATING
from tutorials.check.failures import Failure

READ, WRITE = "read", "wrote"  # as the race detector names them
MOST_THREADS = 1024  # per block


class Touch(NamedTuple):
    """One access of one thread to one element, or to a few neighbouring ones at once."""

    is_read: bool
    memory: str  # the kernel's name for the array
    is_shared: bool
    launch: int
    block: tuple  # its index (x, y, z)
    thread: tuple
    thread_id: int  # in its block: x varies fastest
    address: int
    offset: int  # in bytes, from the first element of the array that the kernel was passed
    nbytes: int
    file: str
    line: int
    place: object  # in the line: equal for the same access


@dataclass
class Launch:
    """One launch of a kernel."""

    grid: tuple
    block: tuple
    kernel: object = None  # the Python function
    arguments: tuple = ()
    barriers: int = 0  # the most that a thread passed


@dataclass
class Record:
    """All launches and accesses inside a `with watch()`."""

    launches: list = field(default_factory=list)
    touches: list = field(default_factory=list)
    sizes: dict = field(default_factory=dict)  # memory -> bytes of the whole array, bytes of an element, shape

    def table(self):
        """The accesses of the busiest thread, as text."""
        from tutorials.check.counting import format_counts

        return format_counts(self)

    def picture(self, memory):
        """Who touches what in `memory`: a drawing.Picture."""
        from tutorials.check.drawing import picture

        return picture(self, memory)

    def draw(self, memory):
        """Show who touches what in `memory`: a figure in a notebook, text elsewhere."""
        from tutorials.check.drawing import show

        show(self.picture(memory))


@contextmanager
def watch():
    """A context that records the launches inside it, with the race detector on. On a real GPU, which cannot be watched, it records nothing."""
    record = Record()
    if not SIMULATING:
        yield record
        return
    from gpt2_numba.gpu.race_detector import race_detector

    with race_detector(functools.partial(_recording_class(), record)):
        yield record


@functools.cache
def _recording_class():
    """The race detector's `cuda` module, which also records. Defined late: the race detector can only be imported in the simulator."""
    from gpt2_numba.gpu.race_detector import WatchedCuda, address_of

    class RecordingCuda(WatchedCuda):
        def __init__(self, record, grid, block, *more):
            check_launch(grid, block)
            super().__init__(grid, block, *more)
            self.record, self.launch = record, Launch(tuple(grid), tuple(block))
            record.launches.append(self.launch)

        def block_starts(self, block, arguments):
            self.launch.kernel, self.launch.arguments = block.kernel, arguments

        def block_has_ended(self, block):
            self.launch.barriers = max(self.launch.barriers, *(thread.barriers for thread in block.threads))

        def observe(self, memory, access, start, nbytes):
            if access.kind not in (READ, WRITE):
                return
            thread, array = access.thread, memory.array
            line, place = source_place(access.code, access.instruction)
            self.record.sizes[memory.name] = array.nbytes, array.itemsize, array.shape
            self.record.touches.append(
                Touch(
                    is_read=access.kind == READ,
                    memory=memory.name,
                    is_shared=memory.is_shared,
                    launch=len(self.record.launches) - 1,
                    block=tuple(thread.blockIdx),
                    thread=tuple(thread.threadIdx),
                    thread_id=thread.thread_id,
                    address=start,
                    offset=start - address_of(array),
                    nbytes=nbytes,
                    file=access.code.co_filename,
                    line=line,
                    place=place,
                )
            )

    return RecordingCuda


@functools.cache
def source_place(code, instruction):
    """(line, what tells an access from others of its line) of an instruction of a kernel.

    The same access may be at several instructions, since Python replaces them as it runs: hence their place in the text, where it is known.
    """
    line = next(line for start, stop, line in code.co_lines() if start <= instruction < stop)
    positions = list(code.co_positions()) if hasattr(code, "co_positions") else []  # from Python 3.11 on
    return line, positions[instruction // 2] if positions else instruction


def check_launch(grid, block):
    """Raise Failure for a launch that a GPU refuses, which the simulator takes."""
    threads = block[0] * block[1] * block[2]
    if min(grid) < 1 or min(block) < 1:
        raise Failure("launch", f"it launches {format_dimensions(grid)} blocks of {format_dimensions(block)} threads: nothing runs")
    if threads > MOST_THREADS:
        raise Failure("launch", f"it launches blocks of {threads:,} threads: a block has at most {MOST_THREADS:,}")


def format_dimensions(dimensions):
    """(4, 1, 1) -> 4; (8, 4, 1) -> 8 × 4."""
    dimensions = list(dimensions)
    while len(dimensions) > 1 and dimensions[-1] == 1:
        dimensions.pop()
    return " × ".join(map(str, dimensions))


def name_thread(touch):
    """thread 3 of block 2; thread (3, 1) of block 0 where there is more than one dimension."""
    return f"thread {_format_index(touch.thread)} of block {_format_index(touch.block)}"


def _format_index(index):
    x, y, z = (int(i) for i in index)
    return str(x) if not (y or z) else f"(x={x}, y={y})" if not z else f"(x={x}, y={y}, z={z})"
