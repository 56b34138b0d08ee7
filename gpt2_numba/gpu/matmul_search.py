"""Find the fastest of cuBLASLt's algorithms for each kind of product by timing, and keep the choices in files.

cuBLASLt ranks its algorithms by a model of the chip, and the first is often not the fastest. So the first time a kind of product comes up,
the first few algorithms are timed in turns, and the fastest is used from then on. They take turns because a GPU under load is throttled
by its power limit: an algorithm that runs first, on a cool card, would look better than it is. A challenger must beat the first algorithm
by more than the noise.

Different algorithms add in different orders, so a choice affects the bits, and no two timings are the same. Therefore a choice is kept:

- in the log directory of the run (`matmul_algorithms.json`), where the same run, restarted or resumed, finds it again;
- in the user's cache, where later runs find it. The run's own file takes precedence.

If several processes train one model, one searches and keeps the choices, and the others adopt them (`known`, `adopt`) and write nothing.

An algorithm is 64 bytes that only the library understands, and only the same version on the same model of GPU accepts. So equal bits
require the same model of GPU, the same version of cuBLASLt, and the same choices: from the same file, from the same cache, or none at all
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

# The time spent on one kind of product; a model has about 15 kinds, 20 in fp32.
WARM_UP_SECONDS = 0.06  # until the GPU's clock has settled under load
SEARCH_SECONDS = 0.15
MIN_ROUNDS, MAX_ROUNDS = 5, 40  # the most expensive products get the minimum, cheap ones the maximum
HOPELESS = 1.2  # after MIN_ROUNDS, candidates slower than the fastest by this factor drop out
MARGIN = 0.01  # fraction by which the first must be beaten: medians of interleaved times vary by a few thousandths


class Choices:
    """The algorithms chosen so far, kind -> bytes, and the files in which they are kept. Process-wide."""

    def __init__(self):
        self.searching = False  # until a program turns it on: tests and checks use the library's first algorithm
        self._machine, self._known, self._files = None, {}, []

    def open(self, gpu, library, log_dir=None):
        """From now on search, starting from the choices of earlier runs. Returns a list of lines to print.

        gpu      the GPU's name
        library  cuBLASLt's version
        log_dir  the run's directory, or None
        """
        self.searching, self._machine = True, {"gpu": gpu, "cublaslt": library}
        name = f"{gpu}-{library}.json".replace(" ", "_").replace("/", "_")
        cache = kernels_directory().with_name("matmul_algorithms") / name
        run_files = [Path(log_dir) / RUN_FILE] if log_dir else []
        self._known, self._files, lines = {}, [cache, *run_files], []
        for path in self._files:  # the run's own file last: it takes precedence
            found, problem = _read(path, self._machine)
            self._known.update(found)
            lines += [problem] if problem else []
        return lines

    def known(self):
        """All choices known so far, in the form of the files: a dictionary that JSON can hold."""
        return {**(self._machine or {}), "algorithms": _as_text(self._known)}

    def adopt(self, content, gpu, library, search=False):
        """Use the `known` choices of another process, and write no file from now on. Returns a list of lines to print.

        search: whether to search for kinds that are not in them; otherwise the library's first algorithm is used. Choices made on another
        GPU or with another version of the library are ignored.
        """
        self.close()
        self.searching, self._machine = search, {"gpu": gpu, "cublaslt": library}
        if not content["algorithms"]:  # of a process that has chosen nothing
            return []
        self._known, mismatch = _parse(content, self._machine)
        return [f"another process's matmul choices are {mismatch}: they are ignored, and bits will differ"] if mismatch else []

    def close(self):
        """Stop searching and forget everything; the files stay."""
        self.__init__()

    def get(self, kind):
        """The algorithm (bytes) chosen for a kind (text), or None. The choice is copied to the run's file, since the run uses it."""
        algorithm = self._known.get(kind)
        if algorithm is not None:
            self._keep({kind: algorithm}, self._files[1:])
        return algorithm

    def put(self, kind, algorithm):
        """Keep a choice, in memory and in the files."""
        self._known[kind] = algorithm
        self._keep({kind: algorithm}, self._files)

    def _keep(self, choices, files):
        for path in files:
            stored, _ = _read(path, self._machine)  # other runs may have added to the cache
            if stored | choices != stored or not path.exists():
                _write(path, self._machine, stored | choices)


choices = Choices()


def _read(path, machine):
    """(kind -> bytes, "") from a file, or ({}, the problem). A missing file is empty."""
    try:
        found, mismatch = _parse(json.loads(path.read_text()), machine)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{path} cannot be read ({type(error).__name__}: {error}): the search for the fastest matrix products is repeated"
    if mismatch:
        return {}, f"{path} is {mismatch}: the search for the fastest matrix products is repeated, and bits will differ"
    return found, ""


def _parse(content, machine):
    """(kind -> bytes, "") from the content of a file or the `known` of a process, or ({}, the mismatch) if it is from another machine."""
    found = {kind: bytes.fromhex(text) for kind, text in content["algorithms"].items()}
    written_on = {key: content[key] for key in machine}
    if written_on == machine:
        return found, ""
    then, now = ("{gpu} with cuBLASLt {cublaslt}".format(**m) for m in (written_on, machine))
    return {}, f"from {then}, this is {now}"


def _as_text(algorithms):
    return {kind: algorithm.hex() for kind, algorithm in sorted(algorithms.items())}


def _write(path, machine, algorithms):
    """Write under a temporary name and rename, so that no reader sees half a file. If that fails, the choice holds for this run only."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**machine, "algorithms": _as_text(algorithms)}, indent=1) + "\n")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def fastest(measure, count, now=time.perf_counter):
    """Index of the fastest of `count` candidates; 0, the library's own choice, unless another is clearly faster.

    measure(order)  runs the candidates in `order`, one after the other, and returns their times in that order
    now()           the time in seconds
    """
    racing, times = list(range(count)), [[] for _ in range(count)]
    end = now() + WARM_UP_SECONDS
    for _ in range(MAX_ROUNDS):
        measure(racing)
        if now() > end:
            break
    end = now() + SEARCH_SECONDS
    for turn in range(MAX_ROUNDS):
        order = racing[turn % len(racing) :] + racing[: turn % len(racing)]  # rotated, so that none always follows the same one
        for candidate, time_taken in zip(order, measure(order)):
            times[candidate].append(time_taken)
        if turn + 1 >= MIN_ROUNDS:
            if now() > end:
                break
            limit = HOPELESS * min(statistics.median(times[candidate]) for candidate in racing)
            racing = [candidate for candidate in racing if candidate == 0 or statistics.median(times[candidate]) <= limit]
    medians = {candidate: statistics.median(times[candidate]) for candidate in racing}
    best = min(medians, key=medians.get)
    return best if medians[best] < medians[0] * (1 - MARGIN) else 0
