"""Which of cuBLASLt's algorithms is the fastest for a kind of product, found by trying; and where what was found is kept.

cuBLASLt ranks its algorithms by a model of the chip, and the first of them is often not the fastest. So when a kind of product comes for the
first time, the first few take turns and are timed, and the fastest is taken from then on. They take turns because a GPU at work is held
back by its power limit: whoever runs first, on a card that has rested, would look better than it is. A challenger has to beat
the first by more than the noise.

Different algorithms add in different orders, so a choice decides bits, and timing is never the same twice. Therefore a choice is kept:

- in the log directory of the run (`matmul_algorithms.json`), where the same run, begun anew or resumed, finds it again;
- in the user's cache, where later runs find it. The run's own file counts first.

Of several processes that train one model, one tries and keeps, and the others are told (`known`, `adopt`): they write nothing.

An algorithm is 64 bytes that only the library can read, and only the same version of it on the same GPU takes them. So equal bits need: the
same model of GPU, the same version of cuBLASLt, and the same choices: from the same file, from the same cache, or none at all
(`--matmul-search off`: always the library's first).
"""

import contextlib
import json
import os
import statistics
import time
from pathlib import Path

from gpt2_numba.gpu.kernel_cache import directory as kernels_directory

RUN_FILE = "matmul_algorithms.json"

# The time that one kind of product may take; a model has some 15 kinds, 20 in fp32.
WARM_UP_SECONDS = 0.06  # until the card's clock has come down
SEARCH_SECONDS = 0.15
FEWEST_ROUNDS, MOST_ROUNDS = 5, 40  # large products and small ones
HOPELESS = 1.2  # who takes so much longer than the fastest after some rounds is left out of the following
MARGIN = 0.01  # part by which the first must be beaten: medians of interleaved times repeat to a few thousandths


class Choices:
    """The algorithms chosen so far, kind -> bytes, and the files in which they are kept. For the whole process."""

    def __init__(self):
        self.searching = False  # until a program asks for it: tests and checks take the library's first
        self._machine, self._known, self._files = None, {}, []

    def open(self, gpu, library, log_dir=None):
        """Search from now on, with what earlier runs have found. Returns lines to be printed.

        gpu      the GPU's name           library  cuBLASLt's version
        log_dir  the run's directory, or None
        """
        self.searching, self._machine = True, {"gpu": gpu, "cublaslt": library}
        name = f"{gpu}-{library}.json".replace(" ", "_").replace("/", "_")
        cache = kernels_directory().with_name("matmul_algorithms") / name
        of_run = [Path(log_dir) / RUN_FILE] if log_dir else []
        self._known, self._files, lines = {}, [cache, *of_run], []
        for path in self._files:  # the run's own last: its choices count
            found, problem = _read(path, self._machine)
            self._known.update(found)
            lines += [problem] if problem else []
        return lines

    def known(self):
        """All that is known so far, as the files hold it: a dictionary made of JSON's types."""
        return {**(self._machine or {}), "algorithms": _as_text(self._known)}

    def adopt(self, told, gpu, library, search=False):
        """Take what another process has `known`, and write no file from now on. Returns lines to be printed.

        search: whether to try for what is not among it; else the library's first serves. What another GPU or library has found is not taken.
        """
        self.close()
        self.searching, self._machine = search, {"gpu": gpu, "cublaslt": library}
        self._known, stranger = _understood(told, self._machine)
        return [f"what another process has chosen is {stranger}: it is not taken, and bits will differ"] if stranger else []

    def close(self):
        """Search no more, forget everything; the files stay."""
        self.__init__()

    def get(self, kind):
        """The algorithm (bytes) chosen for a kind (text), or None. It counts as used: it goes into the run's file."""
        algorithm = self._known.get(kind)
        if algorithm is not None:
            self._keep({kind: algorithm}, self._files[1:])
        return algorithm

    def put(self, kind, algorithm):
        """Remember a choice, here and in the files."""
        self._known[kind] = algorithm
        self._keep({kind: algorithm}, self._files)

    def _keep(self, choices, files):
        for path in files:
            there, _ = _read(path, self._machine)  # other runs may have added to the cache
            if there | choices != there or not path.exists():
                _write(path, self._machine, there | choices)


choices = Choices()


def _read(path, machine):
    """(kind -> bytes, "") from a file, or ({}, why not). A file that does not exist is empty."""
    try:
        found, stranger = _understood(json.loads(path.read_text()), machine)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{path} cannot be read ({type(error).__name__}: {error}): the fastest matrix products are searched again"
    return found, f"{path} is {stranger}: the fastest matrix products are searched again, and bits will differ" if stranger else ""


def _understood(content, machine):
    """(kind -> bytes, "") from what a file holds or a process tells, or ({}, whose it is) if it is of another machine."""
    found = {kind: bytes.fromhex(text) for kind, text in content["algorithms"].items()}
    written_on = {key: content[key] for key in machine}
    if written_on == machine:
        return found, ""
    then, now = ("{gpu} with cuBLASLt {cublaslt}".format(**m) for m in (written_on, machine))
    return {}, f"of {then}, this is {now}"


def _as_text(algorithms):
    return {kind: algorithm.hex() for kind, algorithm in sorted(algorithms.items())}


def _write(path, machine, algorithms):
    """Written aside and renamed, so that no reader sees half of it. Where nothing can be written, the choice holds for this run only."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({**machine, "algorithms": _as_text(algorithms)}, indent=1) + "\n")
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()


def fastest(measure, count, now=time.perf_counter):
    """Which of `count` candidates is the fastest, as an index; 0, the library's own choice, unless another is clearly faster.

    measure(order)  runs the candidates that `order` lists, one after the other, and returns their times in that order
    now()           seconds
    """
    racing, times = list(range(count)), [[] for _ in range(count)]
    end = now() + WARM_UP_SECONDS
    for _ in range(MOST_ROUNDS):
        measure(racing)
        if now() > end:
            break
    end = now() + SEARCH_SECONDS
    for turn in range(MOST_ROUNDS):
        order = racing[turn % len(racing) :] + racing[: turn % len(racing)]  # nobody always follows the same one
        for candidate, taken in zip(order, measure(order)):
            times[candidate].append(taken)
        if turn + 1 >= FEWEST_ROUNDS:
            if now() > end:
                break
            limit = HOPELESS * min(statistics.median(times[candidate]) for candidate in racing)
            racing = [candidate for candidate in racing if candidate == 0 or statistics.median(times[candidate]) <= limit]
    medians = {candidate: statistics.median(times[candidate]) for candidate in racing}
    best = min(medians, key=medians.get)
    return best if medians[best] < medians[0] * (1 - MARGIN) else 0
