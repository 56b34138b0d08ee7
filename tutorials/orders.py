"""Which thread runs first? Nobody knows: what that does to a kernel, shown in the simulator.

    with shuffled(seed): kernel[1, 8](a)       the threads of a block take turns in another order
    report(lambda: kernel[1, 8](a))            prints what the race detector says
    function_from(text, name, names)           a function from its text, for instance with a line taken out

On a GPU the hardware chooses the order, and `report` launches nothing: it prints how to get into the simulator.
"""

import contextlib
import linecache
import random
import re

from gpt2_numba.gpu.backend import SIMULATING


@contextlib.contextmanager
def shuffled(seed):
    """In this context, whenever several threads of a block could run next, one of them is drawn by lot. On a GPU it changes nothing."""
    if not SIMULATING:
        yield
        return
    from numba.cuda.simulator import kernel as simulator_kernel

    lots = random.Random(seed)

    class ShuffledBlock(simulator_kernel.BlockManager):  # the package's scheduler, or the race detector inside its context
        def next_turn(self):
            if self.ready:
                self.ready.rotate(lots.randrange(len(self.ready)))
            super().next_turn()

    before, simulator_kernel.BlockManager = simulator_kernel.BlockManager, ShuffledBlock
    try:
        yield
    finally:
        simulator_kernel.BlockManager = before


def report(launch):
    """Call `launch` under the race detector and print what it says, in one line. Launches nothing on a GPU."""
    if not SIMULATING:
        print("the race detector needs the simulator: start again with NUMBA_ENABLE_CUDASIM=1 in the environment")
        return
    from gpt2_numba.gpu.race_detector import BarrierError, RaceError, race_detector

    try:
        with race_detector():
            launch()
    except (RaceError, BarrierError, IndexError) as error:
        print(in_words(error))
    else:
        print("nothing found: no race, all threads reach every barrier, every index is within bounds")


def in_words(error):
    """An exception that the simulator raised, as a line of text. The simulator's prefix `tid=[...] ctaid=[...]` is thread and block.

    Messages name the thread themselves, and mostly there is one block; another one than block 0 is named. The file names that a notebook
    gives its cells are numbers: of these, the line remains.
    """
    block, message = re.fullmatch(r"(?:tid=\[.*?\] ctaid=\[(\d+).*?\]: )?(.*)", str(error), flags=re.S).groups()
    message = re.sub(r"\b\d+\.py:(\d+)", r"line \1", message)
    return type(error).__name__ + (f" in block {block}" if block not in (None, "0") else "") + f": {message}"


def function_from(text, name, names):
    """The function `name` that the source `text` defines, where `names` are the other names that it uses. Messages can quote its lines."""
    file = f"changed {name}"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file  # no time: never checked against a file
    scope = {"__name__": file, **names}
    exec(compile(text, file, "exec"), scope)
    return scope[name]
