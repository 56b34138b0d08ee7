"""Functions from float32 to float32: the GPU's own instructions, or NumPy in the simulator (where `math` would compute in float64 and hide
the effects of single precision).

exp2 and reciprocal are one instruction each, accurate to two units in the last place. A multiprocessor executes only 16 of them per cycle,
so memory-bound kernels have to use them sparingly. exp, tanh and a division consist of these and a dozen other instructions.
"""

import numpy as np

from gpt2_numba.gpu.backend import SIMULATING

__all__ = ["LOG2_E", "exp", "exp2", "log", "maximum", "reciprocal", "sqrt"]

LOG2_E = np.float32(np.log2(np.e))  # exp(x) = exp2(x LOG2_E)

if SIMULATING:
    from numpy import exp, log, sqrt

    def exp2(x):
        """2 to the power of x; infinity on overflow. Twin for the simulator."""
        with np.errstate(over="ignore"):
            return np.exp2(np.float32(x))

    def reciprocal(x):
        """1 / x. Twin for the simulator."""
        return np.float32(1) / np.float32(x)

    def maximum(a, b):
        """The larger of a and b. Twin for the simulator."""
        return a if a > b else b

else:
    from math import exp, log, sqrt

    from numba import types
    from numba.cuda.extending import intrinsic

    from gpt2_numba.gpu.inline_ptx import F32, inline_ptx

    def _one_instruction(text, operands):
        """Signature and code generator of an intrinsic: `operands` float32 in, one float32 out."""
        signature = types.float32(*[types.float32] * operands)
        return signature, lambda context, builder, _, args: inline_ptx(builder, text, [F32], list(args))[0]

    @intrinsic
    def exp2(typingctx, x):
        """2 to the power of x; infinity on overflow. PTX ISA: ex2.approx.ftz.f32, accurate to 2 units in the last place."""
        return _one_instruction("ex2.approx.ftz.f32 $0, $1;", 1)

    @intrinsic
    def reciprocal(typingctx, x):
        """1 / x. PTX ISA: rcp.approx.ftz.f32, accurate to 1 unit in the last place."""
        return _one_instruction("rcp.approx.ftz.f32 $0, $1;", 1)

    @intrinsic
    def maximum(typingctx, a, b):
        """The larger of a and b; if one is NaN, the other. One instruction, where Python's max takes three. PTX ISA: max.f32."""
        return _one_instruction("max.f32 $0, $1, $2;", 2)
