"""Climb the ladder: every rung beside the package's kernel, its answer checked, its time, and what share of a copy's rate it reaches.

    python -m dev.kernels [layernorm gelu ...] [--precision bf16]

On a GPU; a minute for all. Without one the rungs are checked, at small sizes, and not timed. Exit code 1 if an answer is wrong.
"""

import statistics
import sys
from types import SimpleNamespace

import numpy as np
from numba import cuda

from dev.bench.clock import time_call
from dev.bench.costs import cost_of
from dev.kernels import LAYERS, arguments_of, rungs
from gpt2_numba.command_line import Parser, exit_code
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import compute_stream, real_gpu
from gpt2_numba.layer_checks import AWKWARD, GuardedArray, Sizes, check_call
from gpt2_numba.layer_checks.all_layers import STORAGE

# GPT-2's widths. So many rows that an array of channels is larger than the cache is to be had; of logits fewer do.
TIMED = Sizes(B=32, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=2304)
TIMED_OF = {
    "classifier": Sizes(B=4, T=1024, C=8, NH=1, V=50257, Vp=50304, OC=8),
    "attention": Sizes(B=8, T=1024, C=768, NH=12, V=8, Vp=8, OC=8),
}
CHECKED = Sizes(B=2, T=200, C=768, NH=12, V=5003, Vp=5120, OC=2304)
COPY_BYTES = 1 << 30


def run(argv):
    """The table. Returns the exit code."""
    parser = Parser(prog="python -m dev.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("layers", nargs="*", metavar="layer", help=f"some of {', '.join(LAYERS)} (default: all)")
    parser.add_argument("--precision", choices=tuple(STORAGE), default="bf16")
    settings = parser.parse_args(argv)
    if not set(settings.layers) <= set(LAYERS):
        raise UserError(f"layers must be some of {', '.join(LAYERS)}, got {' '.join(settings.layers)}")
    storage, right = STORAGE[settings.precision], True
    copy_rate = _copy_rate() if real_gpu() else None
    print(f"{'launcher':<28}{'rung':<26}{'answer':<8}" + (f"{'ms':>9}{'GB/s':>8}{'of a copy':>11}" if copy_rate else ""))
    for layer in settings.layers or LAYERS:
        verdicts = [check_call(call, storage) for _, _, call in rungs(layer, CHECKED if real_gpu() else AWKWARD, storage)]
        timed = list(rungs(layer, TIMED_OF.get(layer, TIMED) if copy_rate else AWKWARD, storage))
        of_package = {launcher: call for launcher, rung, call in timed if rung is None}
        for verdict, (launcher, rung, call) in zip(verdicts, timed):
            is_right = all(row.ok for row in verdict)
            right = right and is_right
            line = f"{launcher:<28}{rung.__name__ if rung else 'the package':<26}{'right' if is_right else 'WRONG':<8}"
            if copy_rate:
                ms, nbytes = _time(layer, launcher, call, of_package[launcher], storage)
                line += f"{ms:>9.3f}{nbytes / ms / 1e6:>8.0f}{nbytes / ms * 1000 / copy_rate:>11.1%}"
            print(line, flush=True)
    return 0 if right else 1


def _time(layer, launcher, call, package_call, storage):
    """Milliseconds of a call, and how many bytes must travel for it."""
    arrays = SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()})
    return statistics.median(time_call(lambda: call.launch(arrays))), cost_of(arguments_of(layer, launcher, package_call, arrays)).bytes


def _copy_rate():
    there, here = (cuda.device_array(COPY_BYTES, np.uint8) for _ in range(2))
    return 2 * COPY_BYTES / statistics.median(time_call(lambda: there.copy_to_device(here, stream=compute_stream()))) * 1000


if __name__ == "__main__":
    sys.exit(exit_code(run, sys.argv[1:]))
