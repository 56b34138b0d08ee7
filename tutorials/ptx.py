"""The code that Numba compiles a kernel to: PTX, the GPU's assembly language. It can be read without a GPU."""

from tutorials.instructions import compiled


def float_instructions(function, signature):
    """The instructions with float32 or float64 operands of a function that is compiled as a kernel, or None if there is no compiler.

    function   may use np, cuda, float32 and ZERO
    signature  the types of its arguments, as text: "float32[:], float32[:, :]"

    It is compiled for an H100.
    """
    code = compiled({"": (function, signature)})
    return None if code is None else [line for line in code[""] if ".f32" in line or ".f64" in line]
