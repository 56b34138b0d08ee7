"""Programs beside the package: measurements, drills, data, rungs of the kernels."""

import gpt2_numba  # noqa: F401  (Ctrl-C then ends a program that is still being imported with one line)
