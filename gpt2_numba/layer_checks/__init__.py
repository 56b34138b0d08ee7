"""Is every layer right? Two checks of each, used by the tests and by `python -m gpt2_numba.doctor --check`.

    check_reference(layer)                            the NumPy reference's backward against central differences of its forward, float64
    check_kernel(layer, precision, sizes, kernels)    kernels against the reference, on the very same numbers: the fast ones, the plain
                                                      ones, or functions of your own in place of plain ones

Both return rows: layer, tensor, largest error, bound. `format_table` prints them; a row that is not ok says, as text, where it went
wrong and with which values. In this order it reads from the ground up:

rows         one tensor's verdict, and the table
tolerances   how far off a right answer may be: derived, not chosen
sizes        how large the arrays are
differences  the check of a reference
calls        what a kernel is called with
running      the check of a kernel: guard cells, NaN, twice
all_layers   both checks of all layers

Then a file for each layer, named as in `layers`: reference_rows checks the reference; plain_calls says how the textbook functions are called
and how far off they may be, in whatever order they add up; fast_calls the same of the fast launchers, whose answer is that of the textbook
functions one after the other. residual is the simplest.
"""

from gpt2_numba.layer_checks.all_layers import LAYERS, check_all_layers, check_kernel, check_reference, functions_of, kernel_calls
from gpt2_numba.layer_checks.calls import Call, Tensor
from gpt2_numba.layer_checks.differences import central_differences
from gpt2_numba.layer_checks.rows import Row, compare, format_table
from gpt2_numba.layer_checks.running import GUARD, GuardedArray, check_call, run_on_device
from gpt2_numba.layer_checks.sizes import AWKWARD, ODD, WIDEST, Sizes, production_sizes, small_sizes
from gpt2_numba.layer_checks.tolerances import UNIT, half_ulp

__all__ = [
    "AWKWARD", "GUARD", "LAYERS", "ODD", "UNIT", "WIDEST", "Call", "GuardedArray", "Row", "Sizes", "Tensor", "central_differences",
    "check_all_layers", "check_call", "check_kernel", "check_reference", "compare", "format_table", "functions_of", "half_ulp",
    "kernel_calls", "production_sizes", "run_on_device", "small_sizes",
]  # fmt: skip
