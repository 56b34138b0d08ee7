"""Several processes call every function of their group, for tests/test_parallel_group.py:

    mpirun -np 3 python tests/talk_together.py DIRECTORY

Each writes DIRECTORY/rank_R.npz with the arrays after each operation, and DIRECTORY/rank_R.json with the values that were gathered.
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

SIZES = (1, 2, 5, 64, 1001)  # fewer elements than ranks, not divisible, more


def initial_values(rank, size, dtype):
    """The values a rank begins with: of different magnitudes, so that the last bits of a sum show its order."""
    random = np.random.default_rng([rank, size])
    values = (random.standard_normal(size) * 10.0 ** random.integers(-3, 4, size)).astype(np.float32)
    return values if dtype == FLOAT32 else bfloat16_bits(values)


def uneven_bounds(size, ranks):
    """Unequal parts, some of them empty if there are few elements."""
    return [min(size, size * rank * (rank + 1) // (ranks * (ranks + 1))) for rank in range(ranks)] + [size]


def even_bounds(ranks):
    """Equal parts that neither begin at the start of the array nor end at its end."""
    return [1 + 4 * rank for rank in range(ranks + 1)]


def main(directory):
    group = join(replace(SHARD_DEFAULTS, hang_timeout=60), "cpu")
    rank, ranks = group.rank, group.ranks
    found = {}

    def run(name, operation, sizes, on_gpu, dtype):
        arrays = [initial_values(rank, size, dtype) for size in sizes]
        arrays = [to_device(array, array.dtype) if on_gpu else array for array in arrays]
        group.begin()
        operation(arrays)
        group.end()
        for size, array in zip(sizes, arrays):
            found[f"{name} {size} {np.dtype(dtype)}"] = elements_of(array).copy()

    def in_parts(operation, bounds_for):
        """operation, which takes (array, bounds) pairs, as a function of the arrays. bounds_for: function of (size, ranks)."""
        return lambda arrays: operation([(array, bounds_for(array.size, ranks)) for array in arrays])

    for on_gpu, dtype in ((False, np.float32), (True, np.float32), (True, np.uint16)):
        where = "device" if on_gpu else "host"
        run(f"{where} all_reduce", group.all_reduce, SIZES, on_gpu, dtype)
        run(f"{where} all_reduce again", group.all_reduce, SIZES, on_gpu, dtype)
        run(f"{where} all_reduce of views", lambda arrays: group.all_reduce([a[2:-1] for a in arrays]), (64,), on_gpu, dtype)
        for operation in (group.reduce_scatter, group.all_gather):
            name = f"{where} {operation.__name__}"
            run(name, in_parts(operation, uneven_bounds), SIZES, on_gpu, dtype)
            run(f"{name}, even", in_parts(operation, lambda size, ranks: even_bounds(ranks)), (64,), on_gpu, dtype)

    gathered = {
        "rank": rank,
        "ranks": ranks,
        "names": group.names,
        "host": group.host,
        "mixed": group.gather({"rank": rank, "none": None, "text": "ß\n" * rank, "list": [[], {}, 1.5e-300, float("inf"), 2**60, True]}),
        "large": [len(text) for text in group.gather("x" * 3_000_000 * rank)],
        "sum": group.sum([0.1 * (rank + 1), 1e16 * (-1) ** rank, np.float32(rank)]),
    }
    group.doing("the end")
    group.barrier()
    np.savez(Path(directory, f"rank_{rank}.npz"), **found)
    Path(directory, f"rank_{rank}.json").write_text(json.dumps(gathered))
    group.close()


if __name__ == "__main__":
    main(sys.argv[1])
