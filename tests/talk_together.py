"""Several processes call every function of their group, for tests/test_parallel_group.py:

    mpirun -np 3 python tests/talk_together.py DIRECTORY

Each writes DIRECTORY/rank_R.npz with the arrays after each operation, and DIRECTORY/rank_R.json with what was said.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32, bfloat16_bits, to_device
from gpt2_numba.gpu.simulator import elements_of
from gpt2_numba.parallel.start import join
from gpt2_numba.training.settings import SHARD_DEFAULTS

SIZES = (1, 2, 5, 64, 1001)  # fewer numbers than ranks, not divisible, more


def numbers_of(rank, size, dtype):
    """What a rank begins with: of different magnitudes, so that the order of a sum can be seen in its last bits."""
    random = np.random.default_rng([rank, size])
    values = (random.standard_normal(size) * 10.0 ** random.integers(-3, 4, size)).astype(np.float32)
    return values if dtype == FLOAT32 else bfloat16_bits(values)


def bounds_of(size, ranks):
    """Parts that are unequal, the last one empty if there are more ranks than numbers."""
    return [min(size, size * rank * (rank + 1) // (ranks * (ranks + 1))) for rank in range(ranks)] + [size]


def even_bounds(ranks):
    """Equal parts that neither begin nor end with the array."""
    return [1 + 4 * rank for rank in range(ranks + 1)]


def main(directory):
    group = join(replace(SHARD_DEFAULTS, hang_timeout=60), "cpu")
    rank, ranks = group.rank, group.ranks
    found = {}

    def run(name, operation, sizes, on_gpu, dtype):
        arrays = [numbers_of(rank, size, dtype) for size in sizes]
        arrays = [to_device(array, array.dtype) if on_gpu else array for array in arrays]
        group.begin()
        operation(arrays)
        group.end()
        for size, array in zip(sizes, arrays):
            found[f"{name} {size} {np.dtype(dtype)}"] = elements_of(array).copy()

    for on_gpu, dtype in ((False, np.float32), (True, np.float32), (True, np.uint16)):
        where = "device" if on_gpu else "host"
        run(f"{where} all_reduce", group.all_reduce, SIZES, on_gpu, dtype)
        run(f"{where} all_reduce again", group.all_reduce, SIZES, on_gpu, dtype)
        run(f"{where} all_reduce of views", lambda arrays: group.all_reduce([a[2:-1] for a in arrays]), (64,), on_gpu, dtype)
        for operation in (group.reduce_scatter, group.all_gather):
            name = f"{where} {operation.__name__}"
            run(name, lambda arrays, operation=operation: operation([(a, bounds_of(a.size, ranks)) for a in arrays]), SIZES, on_gpu, dtype)
            run(
                f"{name}, even",
                lambda arrays, operation=operation: operation([(a, even_bounds(ranks)) for a in arrays]),
                (64,),
                on_gpu,
                dtype,
            )

    said = {
        "rank": rank,
        "ranks": ranks,
        "names": group.names,
        "host": group.host,
        "odd things": group.gather(
            {"rank": rank, "none": None, "text": "ß\n" * rank, "list": [[], {}, 1.5e-300, float("inf"), 2**60, True]}
        ),
        "big": [len(text) for text in group.gather("x" * 3_000_000 * rank)],
        "sum": group.sum([0.1 * (rank + 1), 1e16 * (-1) ** rank, np.float32(rank)]),
    }
    group.doing("the end")
    group.barrier()
    np.savez(Path(directory, f"rank_{rank}.npz"), **found)
    Path(directory, f"rank_{rank}.json").write_text(json.dumps(said))
    group.close()


if __name__ == "__main__":
    main(sys.argv[1])
