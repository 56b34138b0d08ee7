"""Climb the ladder: every rung from the plain kernel to the fast one, its result checked, its time, and its share of the ceiling.

    python -m dev.kernels [layernorm gelu ...] [--precision fp32|bf16|both] [--mine FILE.py]

All layers take some minutes on a GPU. Without one, set NUMBA_ENABLE_CUDASIM=1: the rungs are then checked at small sizes in Numba's
simulator, and not timed. --mine adds the layer functions of your own file; in the simulator the race detector watches them. The ceiling is the rate of a copy, or of cuBLASLt's products for matmul and attention. Exit code 1 if a result is wrong.
"""

import statistics
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from dev.bench.clock import time_call
from dev.bench.costs import launch_cost
from dev.kernels import LAYERS, PRECISIONS, buffer, check_arguments, ladder, products_in, rungs
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import compute_stream, real_gpu, require_gpu, to_device
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.kernel_sets import load_own_functions
from gpt2_numba.layer_checks import AWKWARD, Sizes

# GPT-2's widths, and enough rows to make an array larger than the cache; fewer where the plain kernel would take too long.
TIMED = Sizes(B=32, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=2304)
TIMED_BY_LAYER = {
    "gelu": Sizes(B=16, T=1024, C=768, NH=12, V=8, Vp=8, OC=8),
    "encoder": Sizes(B=8, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=8),
    "matmul": Sizes(B=8, T=1024, C=768, NH=12, V=8, Vp=8, OC=3072),
    "classifier": Sizes(B=2, T=1024, C=8, NH=1, V=50257, Vp=50304, OC=8),
    "attention": Sizes(B=4, T=1024, C=768, NH=12, V=8, Vp=8, OC=8),
    "global_norm": Sizes(B=1, T=8, C=768, NH=12, V=50257, Vp=50304, OC=8),  # the gradient of wte
    "adamw": Sizes(B=1, T=8, C=6144, NH=12, V=8, Vp=8, OC=8),  # C * C parameters
}
CHECKED = Sizes(B=2, T=200, C=768, NH=12, V=5003, Vp=5120, OC=2304)
CHECKED_BY_LAYER = {"classifier": Sizes(B=1, T=64, C=8, NH=1, V=50257, Vp=50304, OC=8)}  # rows as long as the timed ones
COPY_BYTES, PRODUCT_SIZE = 1 << 30, 8192


def run(argv):
    """Check and time the rungs, and print the table. Returns the exit code."""
    parser = Parser(prog="python -m dev.kernels", doc=__doc__)
    parser.add_argument("layers", nargs="*", metavar="layer", help=f"some of {', '.join(LAYERS)} (default: all)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "both"), default="both", help="fp32: the float32 rows only, with and without TF32"
    )
    parser.add_argument("--mine", metavar="FILE.py", help="a file with your own layer functions, to check and time with the others")
    settings = parser.parse_args(argv)
    if not set(settings.layers) <= set(LAYERS):
        raise UserError(f"layers must be some of {', '.join(LAYERS)}, got {' '.join(settings.layers)}")
    layers = settings.layers or LAYERS
    own = load_own_functions(settings.mine) if settings.mine else {}
    if own and not any(set(ladder(layer)) & set(own) for layer in layers):
        raise UserError(f"--mine {settings.mine} defines {', '.join(own)}, none of which belongs to {', '.join(layers)}")
    precisions = {"fp32": ("fp32", "tf32"), "bf16": ("bf16",), "both": tuple(PRECISIONS)}[settings.precision]
    require_gpu()  # or the simulator
    on_gpu, wrong = real_gpu(), []
    rates = f"{'ms':>9}{'GB/s':>8}{'TFLOP/s':>9}{'of the ceiling':>16}" if on_gpu else ""
    print(f"{'function':<28}{'rung':<30}{'':<6}{'answer':<8}{rates}")
    for layer in layers:
        for rung in rungs(layer, precisions, own):
            failed = [row for row in rung.check(CHECKED_BY_LAYER.get(layer, CHECKED) if on_gpu else AWKWARD) if not row.ok]
            wrong += failed
            line = f"{rung.function:<28}{rung.name:<30}{rung.precision:<6}{'WRONG' if failed else 'right':<8}"
            print(line + (_speed(rung) if on_gpu else ""), flush=True)
        buffer.cache_clear()
    for row in wrong:
        print(f"FAILED {row}")
    return 1 if wrong else 0


def _speed(rung):
    """Time, rates and share of the ceiling, as columns of the table."""
    arguments = _arguments(rung.layer, rung.function, PRECISIONS[rung.precision])
    cost = launch_cost(SimpleNamespace(name=rung.function, arguments=arguments))
    with products_in(rung.precision):
        ms = statistics.median(time_call(lambda: rung.launch(*arguments.values())))
    flops = f"{cost.flop / ms / 1e9:>9.1f}" if cost.is_product else f"{'':>9}"
    floor = cost.floor({"copy": _copy_rate(), "matmul": _matmul_rate(rung.precision) if cost.is_product else 0.0})
    return f"{ms:>9.3f}{cost.bytes / ms / 1e6:>8.0f}{flops}{floor / ms:>16.1%}"


@lru_cache(maxsize=2)  # the rungs of a function alternate between two types
def _arguments(layer, function, storage):
    return check_arguments(layer, function, TIMED_BY_LAYER.get(layer, TIMED), storage)


@lru_cache
def _copy_rate():
    """The rate of a copy in byte/s, reads and writes both counted."""
    destination, source = (cuda.device_array(COPY_BYTES, np.uint8) for _ in range(2))
    return 2 * COPY_BYTES / statistics.median(time_call(lambda: destination.copy_to_device(source, stream=compute_stream()))) * 1000


@lru_cache
def _matmul_rate(precision):
    """The rate of a large product by the library in FLOP/s."""
    factor = to_device(np.random.default_rng(1).standard_normal((PRODUCT_SIZE, PRODUCT_SIZE), np.float32), PRECISIONS[precision])
    product = cuda.device_array(factor.shape, factor.dtype)
    with products_in(precision):
        ms = statistics.median(
            time_call(lambda: gemm(product, factor, factor, rows=PRODUCT_SIZE, columns=PRODUCT_SIZE, inner=PRODUCT_SIZE))
        )
    return 2 * PRODUCT_SIZE**3 / ms * 1000


def main(argv):
    """The command line. Returns the exit code: 0, 1 if a result is wrong, 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
