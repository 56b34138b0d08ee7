"""The code that Numba compiles a kernel to: PTX, the GPU's assembly language. It can be read without a GPU."""

import inspect
import os
import subprocess
import sys
import textwrap

_PROGRAM = """
import numpy as np
from numba import cuda, float32

ZERO = np.float32(0)

{source}
code, _ = cuda.compile_ptx({name}, ({signature},), cc=(9, 0))
print(code)
"""


def float_instructions(function, signature):
    """The instructions with float32 or float64 operands of a function that is compiled as a kernel, or None if there is no compiler.

    function   may use np, cuda, float32 and ZERO
    signature  the types of its arguments, as text: "float32[:], float32[:, :]"

    It is compiled for an H100, in a process of its own, since Numba compiles nothing for a GPU in a process that simulates one.
    """
    program = _PROGRAM.format(source=textwrap.dedent(inspect.getsource(function)), name=function.__name__, signature=signature)
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        return None
    lines = (" ".join(line.split()) for line in result.stdout.splitlines())
    return [line for line in lines if (".f32" in line or ".f64" in line) and not line.startswith((".", "//"))]
