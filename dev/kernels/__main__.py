"""Climb the ladder: every rung from the plain kernel to the fast one, its answer checked, its time, and its share of the ceiling.

    python -m dev.kernels [layernorm gelu ...] [--precision fp32|bf16|both] [--mine FILE.py]

On a GPU; some minutes for all. Without one the rungs are checked, at small sizes, and not timed. With --mine, the layer functions of your own file
stand beside the others. The ceiling: the rate of a copy, of cuBLASLt's products for matmul and attention. Exit code 1 if an answer is wrong.
"""

import statistics
import sys
from types import SimpleNamespace

import numpy as np
from numba import cuda

from dev.bench.clock import time_call
from dev.bench.costs import cost_of
from dev.kernels import LAYERS, arguments_of, ladder, rungs
from gpt2_numba.command_line import Parser, exit_code
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import compute_stream, real_gpu, to_device
from gpt2_numba.gpu.gemm import allow_tf32, gemm
from gpt2_numba.kernel_sets import load_own_functions
from gpt2_numba.layer_checks import AWKWARD, GuardedArray, Sizes
from gpt2_numba.layer_checks.all_layers import STORAGE

# GPT-2's widths, and as many rows as make an array larger than the cache; fewer where the plain kernel would take too long.
TIMED = Sizes(B=32, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=2304)
TIMED_OF = {
    "encoder": Sizes(B=8, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=8),
    "matmul": Sizes(B=8, T=1024, C=768, NH=12, V=8, Vp=8, OC=3072),
    "classifier": Sizes(B=4, T=1024, C=8, NH=1, V=50257, Vp=50304, OC=8),
    "attention": Sizes(B=4, T=1024, C=768, NH=12, V=8, Vp=8, OC=8),
    "global_norm": Sizes(B=1, T=8, C=768, NH=12, V=50257, Vp=50304, OC=8),  # as many gradients as wte has
    "adamw": Sizes(B=1, T=8, C=6144, NH=12, V=8, Vp=8, OC=8),  # C * C parameters
}
CHECKED = Sizes(B=2, T=200, C=768, NH=12, V=5003, Vp=5120, OC=2304)
COPY_BYTES, PRODUCT_SIZE = 1 << 30, 8192


def run(argv):
    """The table. Returns the exit code."""
    parser = Parser(prog="python -m dev.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("layers", nargs="*", metavar="layer", help=f"some of {', '.join(LAYERS)} (default: all)")
    parser.add_argument("--precision", choices=(*STORAGE, "both"), default="both")
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
    precisions, on_gpu = (tuple(STORAGE) if settings.precision == "both" else (settings.precision,)), real_gpu()
    allow_tf32(False)  # rungs are checked with float32's bounds
    ceilings = {precision: _ceilings(STORAGE[precision]) for precision in precisions} if on_gpu else None
    print(
        f"{'function':<28}{'rung':<30}{'':<6}{'answer':<8}"
        + (f"{'ms':>9}{'GB/s':>8}{'TFLOP/s':>9}{'of the ceiling':>16}" if on_gpu else "")
    )
    wrong = []
    for layer in layers:
        checked = rungs(layer, CHECKED if on_gpu else AWKWARD, precisions, own)
        timed = rungs(layer, TIMED_OF.get(layer, TIMED), precisions, own) if on_gpu else None
        for rung in checked:
            failed = [row for row in rung.check() if not row.ok]
            wrong += failed
            line = f"{rung.function:<28}{rung.name:<30}{rung.precision:<6}{'WRONG' if failed else 'right':<8}"
            print(line + (_speed(layer, next(timed), ceilings[rung.precision]) if on_gpu else ""), flush=True)
    for row in wrong:
        print(f"FAILED {row}")
    return 1 if wrong else 0


def _speed(layer, rung, ceilings):
    """Time, rates and share of the ceiling, for the table."""
    sizes = TIMED_OF.get(layer, TIMED)
    call, storage = rung.calls[0], STORAGE[rung.precision]
    arrays = SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()})
    cost = cost_of(SimpleNamespace(name=rung.function, arguments=arguments_of(layer, rung, sizes, arrays)))
    ms = statistics.median(time_call(lambda: call.launch(arrays)))
    flops = f"{cost.flop / ms / 1e9:>9.1f}" if cost.is_product else f"{'':>9}"
    return f"{ms:>9.3f}{cost.bytes / ms / 1e6:>8.0f}{flops}{cost.floor(ceilings) / ms:>16.1%}"


def _ceilings(storage):
    """Rates of a copy (byte/s, read and written) and of a large matrix product (FLOP/s) of a storage type."""
    there, here = (cuda.device_array(COPY_BYTES, np.uint8) for _ in range(2))
    copy = 2 * COPY_BYTES / statistics.median(time_call(lambda: there.copy_to_device(here, stream=compute_stream()))) * 1000
    factor = to_device(np.random.default_rng(1).standard_normal((PRODUCT_SIZE, PRODUCT_SIZE), np.float32), storage)
    product = cuda.device_array(factor.shape, storage)
    ms = statistics.median(time_call(lambda: gemm(product, factor, factor, *[PRODUCT_SIZE] * 3)))
    return {"copy": copy, "matmul": 2 * PRODUCT_SIZE**3 / ms * 1000}


if __name__ == "__main__":
    sys.exit(exit_code(run, sys.argv[1:]))
