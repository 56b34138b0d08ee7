"""Climb the ladder: every rung from the plain kernel to the fast one, its answer checked, its time, and its share of the ceiling.

    python -m dev.kernels [layernorm gelu ...] [--precision fp32|bf16|both] [--mine FILE.py]

On a GPU; some minutes for all. Without one the rungs are checked, at small sizes, and not timed. With --mine, the layer functions of your own file
stand beside the others. The ceiling: the rate of a copy, of cuBLASLt's products for matmul and attention. Exit code 1 if an answer is wrong.
"""

import statistics
import sys
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from dev.bench.clock import time_call
from dev.bench.costs import cost_of
from dev.kernels import LAYERS, PRECISIONS, arguments_of, buffer, ladder, products_in, rungs
from gpt2_numba.command_line import Parser, exit_code
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import compute_stream, real_gpu, to_device
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.kernel_sets import load_own_functions
from gpt2_numba.layer_checks import AWKWARD, Sizes

# GPT-2's widths, and as many rows as make an array larger than the cache; fewer where the plain kernel would take too long.
TIMED = Sizes(B=32, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=2304)
TIMED_OF = {
    "gelu": Sizes(B=16, T=1024, C=768, NH=12, V=8, Vp=8, OC=8),
    "encoder": Sizes(B=8, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=8),
    "matmul": Sizes(B=8, T=1024, C=768, NH=12, V=8, Vp=8, OC=3072),
    "classifier": Sizes(B=2, T=1024, C=8, NH=1, V=50257, Vp=50304, OC=8),
    "attention": Sizes(B=4, T=1024, C=768, NH=12, V=8, Vp=8, OC=8),
    "global_norm": Sizes(B=1, T=8, C=768, NH=12, V=50257, Vp=50304, OC=8),  # as many gradients as wte has
    "adamw": Sizes(B=1, T=8, C=6144, NH=12, V=8, Vp=8, OC=8),  # C * C parameters
}
CHECKED = Sizes(B=2, T=200, C=768, NH=12, V=5003, Vp=5120, OC=2304)
CHECKED_OF = {"classifier": Sizes(B=1, T=64, C=8, NH=1, V=50257, Vp=50304, OC=8)}  # rows as long as those that are timed
COPY_BYTES, PRODUCT_SIZE = 1 << 30, 8192


def run(argv):
    """The table. Returns the exit code."""
    parser = Parser(prog="python -m dev.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("layers", nargs="*", metavar="layer", help=f"some of {', '.join(LAYERS)} (default: all)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both", help="fp32: with and without TF32")
    parser.add_argument(
        "--mine", metavar="FILE.py", help="a file with layer functions of your own, to be checked and timed beside the others"
    )
    settings = parser.parse_args(argv)
    if not set(settings.layers) <= set(LAYERS):
        raise UserError(f"layers must be some of {', '.join(LAYERS)}, got {' '.join(settings.layers)}")
    layers = settings.layers or LAYERS
    own = load_own_functions(settings.mine) if settings.mine else {}
    if own and not any(set(ladder(layer)) & set(own) for layer in layers):
        raise UserError(f"--mine {settings.mine} defines {', '.join(own)}, none of which belongs to {', '.join(layers)}")
    precisions = {"fp32": ("fp32", "tf32"), "bf16": ("bf16",), "both": tuple(PRECISIONS)}[settings.precision]
    on_gpu, wrong = real_gpu(), []
    rates = f"{'ms':>9}{'GB/s':>8}{'TFLOP/s':>9}{'of the ceiling':>16}" if on_gpu else ""
    print(f"{'function':<28}{'rung':<30}{'':<6}{'answer':<8}{rates}")
    for layer in layers:
        for rung in rungs(layer, precisions, own):
            failed = [row for row in rung.check(CHECKED_OF.get(layer, CHECKED) if on_gpu else AWKWARD) if not row.ok]
            wrong += failed
            line = f"{rung.function:<28}{rung.name:<30}{rung.precision:<6}{'WRONG' if failed else 'right':<8}"
            print(line + (_speed(rung) if on_gpu else ""), flush=True)
        buffer.cache_clear()
    for row in wrong:
        print(f"FAILED {row}")
    return 1 if wrong else 0


def _speed(rung):
    """Time, rates and share of the ceiling, for the table."""
    arguments = _arguments(rung.layer, rung.function, PRECISIONS[rung.precision])
    cost = cost_of(SimpleNamespace(name=rung.function, arguments=arguments))
    with products_in(rung.precision):
        ms = statistics.median(time_call(lambda: rung.launch(*arguments.values())))
    flops = f"{cost.flop / ms / 1e9:>9.1f}" if cost.is_product else f"{'':>9}"
    floor = cost.floor({"copy": _copy_rate(), "matmul": _matmul_rate(rung.precision) if cost.is_product else 0.0})
    return f"{ms:>9.3f}{cost.bytes / ms / 1e6:>8.0f}{flops}{floor / ms:>16.1%}"


@lru_cache(maxsize=2)  # the rungs of a function take turns in two types
def _arguments(layer, function, storage):
    return arguments_of(layer, function, TIMED_OF.get(layer, TIMED), storage)


@lru_cache
def _copy_rate():
    """Byte/s, read and written."""
    there, here = (cuda.device_array(COPY_BYTES, np.uint8) for _ in range(2))
    return 2 * COPY_BYTES / statistics.median(time_call(lambda: there.copy_to_device(here, stream=compute_stream()))) * 1000


@lru_cache
def _matmul_rate(precision):
    """FLOP/s of a large product by the library."""
    factor = to_device(np.random.default_rng(1).standard_normal((PRODUCT_SIZE, PRODUCT_SIZE), np.float32), PRECISIONS[precision])
    product = cuda.device_array(factor.shape, factor.dtype)
    with products_in(precision):
        ms = statistics.median(time_call(lambda: gemm(product, factor, factor, *[PRODUCT_SIZE] * 3)))
    return 2 * PRODUCT_SIZE**3 / ms * 1000


if __name__ == "__main__":
    sys.exit(exit_code(run, sys.argv[1:]))
