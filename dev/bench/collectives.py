"""Are the messages between GPUs correct, and how fast are they?

    mpirun -np 2 python -m dev.bench.collectives [--out DIR]

First it checks every function of the group (gpt2_numba/parallel/nccl_group.py) against NumPy: in float32 and bfloat16, with equal and
unequal parts, one array and several, launched directly, recorded in a CUDA graph and replayed. All cases run; exit code 1 if any is
wrong. Then it measures the time by size of message, sent as the trainer sends them: from a graph.

"Bus" is the rate that each link must carry, comparable with the hardware's rate for any number of ranks n: bytes of the array / time *
(n - 1) / n, and twice that for all_reduce, which is a reduce_scatter and an all_gather (nccl-tests, "PERFORMANCE.md").
"""

import datetime
import hashlib
import importlib.metadata
import json
import statistics
import time
import traceback
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numba import cuda

from dev.bench.clock import hold, mark, milliseconds
from dev.bench.machine import GpuWatch, commit, gpus, versions
from dev.bench.report import table
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import free_gpu_bytes, zero
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, compute_stream, copy_to_device, copy_to_host, real_gpu, synchronize, to_storage
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.parallel.start import join
from gpt2_numba.parallel.watch import end_process
from gpt2_numba.training.settings import SHARD_DEFAULTS

HANG_TIMEOUT = 60  # seconds
OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather")
UNIT = {FLOAT32: 2.0**-24, BFLOAT16_BITS: 2.0**-8}  # largest relative error of one rounding
NAMES = {FLOAT32: "fp32", BFLOAT16_BITS: "bf16"}

LARGE = 1 << 21  # elements: in flight long enough to catch code that does not wait for them

GUARD = 8  # elements after the last piece that must not be written

# The rounds of a check: how the work gets to the GPU (Graphs.run does this in turn), and the seed of its inputs.
ROUNDS = (("launched directly", 0), ("recorded", 1), ("replayed", 2), ("replayed on the first inputs again", 0))

SIZES = tuple(4**k << 10 for k in range(1, 11)) + (3 << 30,)  # bytes: 4 KiB, 16 KiB ... 1 GiB, and the gradients of d48
MOST_CALLS, GRAPH_BYTES = 20, 8 << 30  # calls in one graph: up to this many bytes in total
REPLAYS = 5


def run_operation(group, name, pieces):
    """Call a function of the group on a list of (array, bounds)."""
    function = getattr(group, name)
    function([array for array, _ in pieces] if name == "all_reduce" else pieces)


# -------------------------------------------------------------------------------------------------------- correctness


def layouts(ranks, large=LARGE):
    """Name -> a list of pieces, each a list of ranks + 1 bounds: where its parts lie in memory, with guard cells between the pieces."""

    def equal(start, length):
        return [start + length * rank for rank in range(ranks + 1)]

    def unequal(start, length):
        return [start + length * rank * (rank + 1) // 2 for rank in range(ranks + 1)]  # part r is r + 1 times as long

    return {
        "equal parts": [equal(8, 1024)],
        "equal parts, large": [equal(8, large // ranks)],
        "unequal parts": [unequal(8, 1000)],
        "several arrays, odd sizes": [equal(3, 1), unequal(101, 7), [500] * ranks + [501], equal(1001, 333)],
    }


def check(group, large=LARGE):
    """Check all operations on all layouts. Returns faults, the same list at every rank; rank 0 prints a line per case."""
    faults, graphs = [], Graphs(True)
    for dtype in (FLOAT32, BFLOAT16_BITS):
        cases = layouts(group.ranks, large)
        memory = [cuda.device_array(max(bounds[-1][-1] for bounds in cases.values()) + GUARD, dtype) for _ in range(2)]
        for name, bounds in cases.items():
            for operation in OPERATIONS:
                case = f"{operation}, {NAMES[dtype]}, {name}"
                found = check_case(group, graphs, case, operation, bounds, *(array[: bounds[-1][-1] + GUARD] for array in memory))
                faults += found
                if group.rank == 0:
                    print(f"{'FAILED' if found else 'ok':<8}{case}", *found, sep="\n        " if found else "", flush=True)
    return faults


def check_case(group, graphs, case, operation, bounds, given, memory):
    """Check one operation on one layout, in all rounds. Returns the faults of all ranks.

    bounds         from layouts
    given, memory  device arrays: the values before and afterwards the results; a copy in which the group works
    """
    size, dtype = given.size, given.dtype
    # Each piece is a separate array with its own bounds. They begin after 2 cells, which must not change.
    pieces = [(memory[piece[0] - 2 : piece[-1]], [bound - piece[0] + 2 for bound in piece]) for piece in bounds]
    if operation == "all_reduce":
        pieces = [(array[2:], None) for array, _ in pieces]

    def work():
        memory.copy_to_device(given, stream=compute_stream())
        group.begin()
        run_operation(group, operation, pieces)
        group.end()
        given.copy_to_device(memory, stream=compute_stream())  # waits for the group, like the work that follows in training

    faults, first_bits = [], None
    for how, seed in ROUNDS:
        group.doing(f"{case}, {how}")
        everyone = [initial_values(rank, seed, size, dtype) for rank in range(group.ranks)]
        copy_to_device(given, everyone[group.rank])
        graphs.run(case, work)
        got = copy_to_host(given)
        expected, tolerance = expectation(operation, everyone, group.rank, bounds, dtype)
        fault = compare(got, expected, tolerance)
        defined = got[np.isfinite(tolerance)]
        if seed == 0:
            first_bits = defined if first_bits is None else first_bits
            if not fault and not np.array_equal(first_bits, defined):
                fault = f"{np.sum(first_bits != defined)} elements differ in their bits from the first time"
        summed = np.concatenate([got[piece[0] : piece[-1]] for piece in bounds])
        verdicts = group.gather([fault, hashlib.sha256(summed.tobytes()).hexdigest()])
        faults += [f"{how}: {group.names[rank]}: {text}" for rank, (text, _) in enumerate(verdicts) if text]
        if operation != "reduce_scatter" and not any(text for text, _ in verdicts) and len({digest for _, digest in verdicts}) > 1:
            faults.append(f"{how}: the ranks have different bits")
    return faults


def initial_values(rank, seed, size, dtype):
    """The values that a rank starts with: float32 that the type represents exactly."""
    values = to_storage(np.random.default_rng([rank, seed]).standard_normal(size, np.float32), dtype)
    return values if dtype == FLOAT32 else (values.astype(np.uint32) << 16).view(np.float32)


def expectation(operation, everyone, rank, bounds, dtype):
    """(expected, tolerance) of each element at a rank. A sum of n terms has n - 1 roundings, none larger than that of Σ |x|.

    Tolerance: 0 for elements that are copied or must not change, infinity for undefined ones.
    """
    expected, tolerance = everyone[rank].astype(np.float64), np.zeros(everyone[rank].size)
    total = np.sum(everyone, axis=0, dtype=np.float64)
    sum_error = (len(everyone) - 1) * UNIT[dtype] * np.sum(np.abs(everyone), axis=0, dtype=np.float64)
    for piece in bounds:
        for owner, (start, stop) in enumerate(pairwise(piece)):
            part = slice(start, stop)
            if operation == "all_gather":
                expected[part] = everyone[owner][part]
            elif operation == "all_reduce" or owner == rank:
                expected[part], tolerance[part] = total[part], sum_error[part]
            else:
                tolerance[part] = np.inf
    return expected, tolerance


def compare(got, expected, tolerance):
    """A description of what is wrong; None if nothing is."""
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(got - expected) <= tolerance) & np.isfinite(tolerance)
    if not wrong.any():
        return None
    at = int(np.argmax(wrong))
    return (
        f"{wrong.sum()} of {wrong.size} elements are wrong, the first at {at}, the last at {np.flatnonzero(wrong)[-1]}: "
        f"{got[at]:.9g} instead of {expected[at]:.9g} (tolerance {tolerance[at]:.3g})"
    )


# -------------------------------------------------------------------------------------------------------- speed


def measure(group, sizes=SIZES, watch=None):
    """Measure times in bfloat16 with equal parts. Returns rows, as dictionaries. watch: GpuWatch of rank 0's GPU."""
    rows = []
    free = min(group.gather(free_gpu_bytes()))
    sizes = [size for size in sizes if 2 * size < free]
    memory = cuda.device_array(max(sizes) // 2, BFLOAT16_BITS)
    zero(memory)  # so that sums stay finite
    graphs = Graphs(True)
    for size in sizes:
        for operation in OPERATIONS:
            group.doing(f"the time of {operation} of {size} bytes")
            row = {"operation": operation, "bytes": size, **time_operation(group, graphs, operation, memory[: size // 2], watch)}
            rate = size * (group.ranks - 1) / group.ranks / row["ms"] * 1e3
            rows.append({**row, "bus_bytes_per_second": rate * (2 if operation == "all_reduce" else 1)})
    return rows


def time_operation(group, graphs, operation, array, watch):
    """Milliseconds per call, and the host's time to launch it directly. The slowest rank counts."""
    length = array.size // group.ranks
    pieces = [(array[: length * group.ranks], [length * rank for rank in range(group.ranks + 1)])]
    calls = max(1, min(MOST_CALLS, GRAPH_BYTES // array.nbytes))

    def work():
        group.begin()
        for _ in range(calls):
            run_operation(group, operation, pieces)
        group.end()

    key = operation, array.nbytes
    graphs.run(key, work)  # connects the ranks
    synchronize()
    group.barrier()
    before = time.perf_counter()
    work()
    host_seconds = (time.perf_counter() - before) / calls
    graphs.run(key, work)  # records
    synchronize()
    group.barrier()
    start = time.perf_counter()
    hold(2)  # keeps the GPUs busy until all hosts have launched everything
    marks = [mark()]
    for _ in range(REPLAYS):
        graphs.run(key, work)
        marks.append(mark())
    synchronize()
    found = watch.between(start, time.perf_counter()) if watch else {}
    mine = [milliseconds(a, b) / calls for a, b in pairwise(marks[1:])]  # the first replay waits for the other ranks
    times = group.gather([statistics.median(mine), host_seconds])
    return {"ms": max(ms for ms, _ in times), "host_ms": max(seconds for _, seconds in times) * 1e3, "calls": calls, **found}


def times_table(rows):
    """A table with a line for each size."""
    lines = []
    for size in dict.fromkeys(row["bytes"] for row in rows):
        cells = [size_name(size)]
        for row in rows:
            if row["bytes"] == size:
                cells += [f"{row['ms'] * 1000:.1f}", f"{row['bus_bytes_per_second'] / 1e9:.1f}"]
        lines.append(cells)
    return table(["bytes", *(text for name in OPERATIONS for text in (f"{name} µs", "bus GB/s"))], lines)


def size_name(size):
    """4 KiB, 64 MiB, 3 GiB"""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size} {unit}"
        size //= 1024


# ------------------------------------------------------------------------------------------------------------- command line


def run(argv):
    """Check and measure. Returns the exit code."""
    parser = Parser(prog="python -m dev.bench.collectives", doc=__doc__)
    parser.add_argument("--out", type=user_path, help="folder for result.json (default: not written)")
    settings = parser.parse_args(argv)
    if not real_gpu():
        raise UserError("python -m dev.bench.collectives measures GPUs, and there is none here: python -m gpt2_numba.doctor says more")
    started = time.perf_counter()
    group = join(replace(SHARD_DEFAULTS, hang_timeout=HANG_TIMEOUT), "gpu")
    if group.ranks == 1:
        raise UserError("python -m dev.bench.collectives needs several processes: mpirun -np 2 python -m dev.bench.collectives")
    try:
        return run_together(group, settings, argv, started)
    except Exception as error:
        traceback.print_exc()
        group.fail(f"{type(error).__name__}: {error}")
        end_process(1)


def run_together(group, settings, argv, started):
    """The part of `run` after the processes have joined."""
    machine = {**versions(), "nccl4py": importlib.metadata.version("nccl4py"), "NCCL": nccl_version()}
    if group.rank == 0:
        library = f"NCCL {machine['NCCL']}, nccl4py {machine['nccl4py']}"
        print(*group.names, f"{library}; joined after {time.perf_counter() - started:.1f} s", sep="\n", flush=True)
    faults = check(group)
    checked = time.perf_counter() - started
    with GpuWatch(cuda.get_current_device().uuid) as watch:
        rows = measure(group, watch=watch)
    group.close()
    if group.rank != 0:
        return 1 if faults else 0
    seconds = time.perf_counter() - started
    verdict = f"{len(faults)} FAULTS, see above" if faults else "all results are correct"
    host = statistics.median(row["host_ms"] for row in rows) * 1e3
    print(f"\n{times_table(rows)}\n\n{verdict}; a call costs the host {host:.0f} µs; checks {checked:.0f} s, total {seconds:.0f} s")
    if settings.out:
        result = {
            "command": f"mpirun -np {group.ranks} python -m dev.bench.collectives {' '.join(argv)}".strip(),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "ranks": group.names,
            "gpu": gpus(),
            "commit": commit(),
            "versions": machine,
            "faults": faults,
            "times": rows,
            "seconds": round(seconds, 1),
        }
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {settings.out / 'result.json'}")
    return 1 if faults else 0


def nccl_version():
    """The version as text, 2.28.9; the library returns major * 10000 + minor * 100 + patch."""
    from gpt2_numba.parallel.nccl_group import load_nccl

    version = load_nccl().get_version()
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def main(argv):
    """The command line. Returns the exit code: 0, 1 if a result is wrong, 2 for a user error or a missing GPU, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
