"""A user's own layer functions (--kernels FILE.py), checked before a model trains with them.

Each is checked by layer_checks as the package's own kernels are: at awkward sizes and, on a GPU, at the model's widths. In the simulator
the race detector watches too.
"""

import contextlib
from types import SimpleNamespace

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.layer_checks import LAYERS, Sizes, check_kernel, format_table, layer_functions, small_sizes

SMALL_VOCABULARY = 503, 512  # V and Vp for layers to which the vocabulary is only a number of rows


def check_own_kernels(kernels, config):
    """Check the functions in kernels.own, of a KernelSet, and print a table: tensor, largest error, bound.

    config: the GPT2Config of the model to train. Raises UserError, in one line, if a function raises or its result is wrong.
    """
    checked = SimpleNamespace(**{name: reporting_errors(name, getattr(kernels.functions, name)) for name in kernels.own})
    print(f"checking {', '.join(kernels.own)} of {kernels.name}:")
    rows = []
    with watching_for_races():
        for layer in LAYERS:
            if set(layer_functions(layer)) & set(kernels.own):
                for sizes in [*small_sizes(layer, "fp32", "plain"), *([] if SIMULATING else [model_sizes(layer, config)])]:
                    rows += check_kernel(layer, "fp32", sizes, checked)
    print(format_table(rows))
    wrong = [row for row in rows if not row.ok]
    if wrong:
        more = f" ({len(wrong) - 1} more in the table)" if len(wrong) > 1 else ""
        raise UserError(f"--kernels {kernels.name}: {wrong[0]}{more}")


def watching_for_races():
    """The race detector in the simulator; nothing on a GPU."""
    if not SIMULATING:
        return contextlib.nullcontext()
    from gpt2_numba.gpu.race_detector import race_detector

    return race_detector()


def model_sizes(layer, config):
    """The model's widths with few rows, because the reference runs on the CPU."""
    V, Vp = (config.V, config.Vp) if layer in ("classifier", "matmul without bias") else SMALL_VOCABULARY
    return Sizes(B=2, T=37, C=config.C, NH=config.NH, V=V, Vp=Vp, OC=4 * config.C)


def reporting_errors(name, function):
    """Wrap a function: an exception becomes a UserError of one line that names the function."""

    def call(*arguments):
        try:
            function(*arguments)
        except Exception as error:
            message = " ".join(str(error).split())
            raise UserError(f"--kernels: {name} raised {type(error).__name__}: {message}") from error

    return call
