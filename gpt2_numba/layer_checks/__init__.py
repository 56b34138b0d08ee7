"""Is every layer correct? Two checks of each, used by the tests and by `python -m gpt2_numba.doctor --check`.

    check_reference(layer)                            the NumPy reference's backward against central differences of its forward, float64
    check_kernel(layer, precision, sizes, kernels)    kernels against the reference on identical inputs: the fast kernels, the plain
                                                      ones, or your own in place of plain ones

Both return rows: layer, tensor, largest error, bound. `format_table` formats them; a failed row, as text, says where it went wrong and with
which values. Read the files in this order:

rows         the verdict on one tensor, and the table
tolerances   how far off a correct result may be: derived, not chosen
sizes        the sizes of the arrays
differences  the check of a reference
calls        what a kernel is called with
running      the check of a kernel: guard cells, NaN, two runs
all_layers   both checks of all layers

Then one file per layer, named as in `layers`: reference_rows checks the reference; plain_calls describes calls of the textbook functions,
with error bounds that hold for any order of summation; fast_calls does the same for the fast launchers, whose expected result is that of
the textbook functions called in sequence. residual is the simplest.
"""

from gpt2_numba.layer_checks.all_layers import LAYERS, check_all_layers, check_kernel, check_reference, kernel_calls, layer_functions
from gpt2_numba.layer_checks.calls import Call, Tensor
from gpt2_numba.layer_checks.differences import central_differences
from gpt2_numba.layer_checks.rows import Row, compare, format_table
from gpt2_numba.layer_checks.running import GUARD, GuardedArray, check_call, run_on_device
from gpt2_numba.layer_checks.sizes import AWKWARD, ODD, WIDEST, Sizes, production_sizes, small_sizes
from gpt2_numba.layer_checks.tolerances import UNIT, half_ulp

__all__ = [
    "AWKWARD", "GUARD", "LAYERS", "ODD", "UNIT", "WIDEST", "Call", "GuardedArray", "Row", "Sizes", "Tensor", "central_differences",
    "check_all_layers", "check_call", "check_kernel", "check_reference", "compare", "format_table", "layer_functions", "half_ulp",
    "kernel_calls", "production_sizes", "run_on_device", "small_sizes",
]  # fmt: skip
