"""(a) The most this GPU can do: copies and matrix products. In a burst, with a cool chip, and sustained, at its power limit."""

import statistics
import time

import numpy as np
from numba import cuda

from dev.bench.clock import hold, time_call, time_for
from dev.bench.costs import launch_cost
from dev.bench.launches import work_key
from gpt2_numba.gpu.arena import free_gpu_bytes
from gpt2_numba.gpu.backend import compute_stream, synchronize, to_device
from gpt2_numba.gpu.gemm import gemm

COPY_BYTES = 1 << 30  # read, and the same number written: twenty times the L2 cache
SQUARE = 8192
SUSTAINED_SECONDS = 2.0  # the first second is for the clock to settle
SETTLING_SECONDS = 1.0
REST_SECONDS = 0.5  # before a burst


def measure_ceilings(products, storage, tokens, watch, square=SQUARE, copy_bytes=COPY_BYTES, seconds=SUSTAINED_SECONDS):
    """Measure the ceilings. Returns a dictionary of rates in byte/s and FLOP/s.

    products   the matrix products of one micro-step of `tokens` tokens, as Parts, in order
    storage    type of the square product
    watch      a GpuWatch
    """
    copy = _measure_copy(copy_bytes, watch, seconds)
    square_rates = _measure_square(square, storage, watch, seconds)
    shapes = {}
    for part in products:
        shapes.setdefault(work_key(part), []).append(part)
    product_rates = []
    for parts in shapes.values():
        part = parts[0]
        sizes = [part.arguments[name] for name in ("rows", "columns", "inner")]
        burst = launch_cost(part).flop / _seconds(time_call(part.call))
        product_rates.append({"name": product_name(part), "MNK": sizes, "calls": len(parts), "burst": burst})

    def all_products():
        for part in products:
            part.call()

    sustained = _measure(all_products, sum(launch_cost(part).flop for part in products), watch, max(seconds, 1.5 * seconds))
    best = max([square_rates["burst"], *(shape["burst"] for shape in product_rates)])
    return {
        "copy": copy,
        "square": {"size": square, **square_rates},
        "products": product_rates,
        "all_products": {**sustained, "tokens_per_second": tokens / sustained["sustained_ms"] * 1000},
        "burst": {"copy": max(copy["burst"], copy["sustained"]), "matmul": best},
        "sustained": {"copy": copy["sustained"], "matmul": max(square_rates["sustained"], sustained["sustained"])},
    }


def _measure_copy(nbytes, watch, seconds):
    nbytes = int(min(nbytes, free_gpu_bytes() // 8))
    destination, source = (cuda.device_array(nbytes, np.uint8) for _ in range(2))
    return _measure(lambda: destination.copy_to_device(source, stream=compute_stream()), 2 * nbytes, watch, seconds)


def _measure_square(size, storage, watch, seconds):
    values = np.random.default_rng(3).standard_normal((size, size), np.float32)
    a, b, out = to_device(values, storage), to_device(values[::-1], storage), cuda.device_array(values.shape, storage)
    return _measure(lambda: gemm(out, a, b, rows=size, columns=size, inner=size, transpose_b=True), 2 * size**3, watch, seconds)


def product_name(part):
    """The result of a matrix product of the linear layer, identified by the transposed factor: see layers/matmul.py."""
    return "dweight" if part.arguments["transpose_a"] else "forward" if part.arguments["transpose_b"] else "dinp"


def _measure(call, work, watch, seconds):
    """Rates of `work` (bytes or FLOP) per call: after a rest, and after SETTLING_SECONDS of calls; and clock and power during these."""
    call()
    synchronize()
    time.sleep(REST_SECONDS)
    hold(0.5)
    burst = _seconds(time_call(call))
    start = time.perf_counter()
    repeated = time_for(seconds, call)
    last = settled(repeated)
    found = watch.between(start + min(SETTLING_SECONDS, seconds / 2), time.perf_counter())
    return {"burst": work / burst, "sustained": work / last * 1000, "sustained_ms": last, **found}


def _seconds(times):
    return statistics.median(times) / 1000


def settled(repeated):
    """Median milliseconds of the calls that ended after SETTLING_SECONDS, else of the second half. repeated: from time_for."""
    late = [ms for end, ms in repeated if end > SETTLING_SECONDS] or [ms for _, ms in repeated[len(repeated) // 2 :]]
    return statistics.median(late)
