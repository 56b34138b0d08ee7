"""Kernels with a fault that no check of a single layer finds, for `--kernels dev/drills/planted_launches.py --guards on`.

The fault shows only if the rows are a multiple of 8, which those of the checks are not. PLANTED in the environment says which it is:

    beyond      one element after the end of the output is written
    before      one element before its start
    adds        the sum is added to what the output holds, which nothing has written
    skips       nothing is written, so the layer after this one reads what nothing has written
"""

import ctypes
import math
import os

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING, device_pointer

FAULTS = ("beyond", "before", "adds", "skips")
THREADS = 32


@cuda.jit
def planted_sum_kernel(out, inp, branch, first, count, adds):
    i = cuda.grid(1)
    if i < count:
        value = inp[i] + branch[i] if i < inp.shape[0] else inp[0]
        out[first + i] = out[first + i] + value if adds else value


def residual_forward(out, inp, branch):
    """The layer function of layers/residual.py, with the fault."""
    count = math.prod(out.shape)
    fault = os.environ.get("PLANTED", "") if out.shape[0] % 8 == 0 else ""
    if fault == "skips":
        return
    flat_out, first = out.reshape((count,)), 0
    if fault in ("beyond", "before"):
        flat_out, first = with_neighbours(flat_out), 0 if fault == "before" else 1
        # One element too many: the first is the one before the output, or the last the one after it.
        flat_inp = inp.reshape((count,))
        planted_sum_kernel[-(-(count + 1) // THREADS), THREADS](flat_out, flat_inp, branch.reshape((count,)), first, count + 1, False)
        return
    blocks = -(-count // THREADS)
    planted_sum_kernel[blocks, THREADS](flat_out, inp.reshape((count,)), branch.reshape((count,)), first, count, fault == "adds")


def with_neighbours(flat):
    """A view of a flat float32 device array, of one element before it, and of one after it."""
    count = flat.shape[0] + 2
    if SIMULATING:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        address = flat._ary.__array_interface__["data"][0] - flat.itemsize
        return FakeCUDAArray(np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)))
    data = (device_pointer(flat) - flat.dtype.itemsize, False)
    interface = {"shape": (count,), "typestr": "<f4", "data": data, "version": 3}
    return cuda.from_cuda_array_interface(interface)
