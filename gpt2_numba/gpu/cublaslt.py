"""Matrix products by cuBLASLt, NVIDIA's library, through its Python bindings (`nvmath.bindings.cublasLt`).

cuBLASLt thinks in columns: it reads a row-major (rows, cols) array as its transpose. So it is asked for the transposed product,
out.T = op(B).T op(A).T, with the two factors changed over; nothing is ever copied or rearranged.

A plan (descriptors and the algorithm chosen) is made once for each combination of shapes, strides and types, and kept.
Reference: cuBLAS documentation, "Using the cuBLASLt API".
"""

import functools
from dataclasses import dataclass

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import FLOAT32, compute_stream, device_pointer

WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends on Hopper
LARGEST_ALIGNMENT = 256  # bytes: what cuBLASLt takes for granted of pointers unless told otherwise

_CUDA_R_32F, _CUDA_R_16BF = 0, 14  # cudaDataType, library_types.h
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


@dataclass(frozen=True)
class Operand:
    """How a matrix lies in memory: stored shape, row length in elements, elements from batch to batch, address alignment in bytes."""

    rows: int
    cols: int
    row_stride: int
    batch_stride: int
    alignment: int


@dataclass(frozen=True)
class Plan:
    """Handles of one kind of product, ready to run."""

    descriptor: int
    layouts: tuple  # of cuBLASLt's A, B, D
    result: object  # the heuristic's result; keeps the algorithm's memory alive


@functools.cache
def _library():
    from nvmath.bindings import cublasLt

    return cublasLt, cublasLt.create()


@functools.cache
def _workspace():
    return cuda.device_array(WORKSPACE_BYTES, np.uint8)


def describe(array, rows, cols):
    """The Operand for the leading `rows` x `cols` part of a (rows, row length) or (batch, rows, row length) device array."""
    batch_stride = array.shape[-2] * array.shape[-1] if array.ndim == 3 else 0
    address = device_pointer(array) | (batch_stride * array.dtype.itemsize)
    return Operand(rows, cols, array.shape[-1], batch_stride, min(LARGEST_ALIGNMENT, address & -address))


@functools.cache
def _plan(a, b, out, M, N, K, transpose_a, transpose_b, batch, dtype, epilogue, tf32):
    from nvmath.bindings import cublas

    lt, handle = _library()
    compute = cublas.ComputeType.COMPUTE_32F
    if dtype == FLOAT32 and tf32:
        compute = cublas.ComputeType.COMPUTE_32F_FAST_TF32
    descriptor = lt.matmul_desc_create(compute, _CUDA_R_32F)
    cuda_type = _CUDA_R_32F if dtype == FLOAT32 else _CUDA_R_16BF

    def set_attribute(setter, getter, target, attribute, value):
        buffer = np.array([value], getter(attribute))
        setter(target, attribute, buffer.ctypes.data, buffer.nbytes)

    def set_desc(attribute, value):
        set_attribute(lt.matmul_desc_set_attribute, lt.get_matmul_desc_attribute_dtype, descriptor, attribute, value)

    # cuBLASLt's A is our b, its B is our a: see the module's docstring.
    set_desc(lt.MatmulDescAttribute.TRANSA, cublas.Operation.T if transpose_b else cublas.Operation.N)
    set_desc(lt.MatmulDescAttribute.TRANSB, cublas.Operation.T if transpose_a else cublas.Operation.N)
    set_desc(lt.MatmulDescAttribute.EPILOGUE, lt.Epilogue[epilogue])
    if "BIAS" in epilogue:
        set_desc(lt.MatmulDescAttribute.BIAS_DATA_TYPE, cuda_type)
    if "GELU" in epilogue:
        set_desc(lt.MatmulDescAttribute.EPILOGUE_AUX_LD, out.row_stride)
        set_desc(lt.MatmulDescAttribute.EPILOGUE_AUX_DATA_TYPE, cuda_type)

    def layout(operand):
        handle = lt.matrix_layout_create(cuda_type, operand.cols, operand.rows, operand.row_stride)
        if batch > 1:
            for attribute, value in (
                (lt.MatrixLayoutAttribute.BATCH_COUNT, batch),
                (lt.MatrixLayoutAttribute.STRIDED_BATCH_OFFSET, operand.batch_stride),
            ):
                set_attribute(lt.matrix_layout_set_attribute, lt.get_matrix_layout_attribute_dtype, handle, attribute, value)
        return handle

    layouts = (layout(b), layout(a), layout(out))
    preference = lt.matmul_preference_create()
    attributes = lt.MatmulPreferenceAttribute
    for attribute, value in (
        (attributes.MAX_WORKSPACE_BYTES, WORKSPACE_BYTES),
        (attributes.REDUCTION_SCHEME_MASK, lt.ReductionScheme.COMPUTE_TYPE),  # partial sums meet in float32, not in bfloat16
        (attributes.MIN_ALIGNMENT_A_BYTES, b.alignment),
        (attributes.MIN_ALIGNMENT_B_BYTES, a.alignment),
        (attributes.MIN_ALIGNMENT_C_BYTES, out.alignment),
        (attributes.MIN_ALIGNMENT_D_BYTES, out.alignment),
    ):
        set_attribute(
            lt.matmul_preference_set_attribute, lt.get_matmul_preference_attribute_dtype, preference, attribute, value
        )
    result, found = lt.MatmulHeuristicResult(), np.zeros(1, np.int32)
    lt.matmul_algo_get_heuristic(
        handle, descriptor, layouts[0], layouts[1], layouts[2], layouts[2], preference, 1, result.ptr, found.ctypes.data
    )
    lt.matmul_preference_destroy(preference)
    if found[0] == 0:
        raise RuntimeError(f"cuBLASLt has no algorithm for M={M} N={N} K={K} batch={batch} {dtype} {epilogue}")
    return Plan(descriptor, layouts, result)


def _epilogue(bias, gelu_to, gelu_of):
    """Name of cuBLASLt's epilogue: what it does with the product before it writes it."""
    if gelu_of is not None:
        return "DGELU"
    if gelu_to is not None:
        return "GELU_AUX_BIAS"
    return "DEFAULT" if bias is None else "BIAS"


def cublaslt_gemm(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias, tf32, gelu_to, gelu_of):
    """Arguments as in `gemm.gemm`."""
    batch = out.shape[0] if out.ndim == 3 else 1
    plan = _plan(
        describe(a, *((K, M) if transpose_a else (M, K))),
        describe(b, *((N, K) if transpose_b else (K, N))),
        describe(out, M, N),
        M, N, K, transpose_a, transpose_b, batch, out.dtype, _epilogue(bias, gelu_to, gelu_of), tf32,
    )  # fmt: skip
    lt, handle = _library()
    attributes = lt.MatmulDescAttribute
    for attribute, array in (
        (attributes.BIAS_POINTER, bias),
        (attributes.EPILOGUE_AUX_POINTER, gelu_to if gelu_of is None else gelu_of),
    ):
        if array is not None:
            pointer = np.array([device_pointer(array)], np.int64)
            lt.matmul_desc_set_attribute(plan.descriptor, attribute, pointer.ctypes.data, pointer.nbytes)
    alpha = _ONE if alpha == 1 else np.array([alpha], np.float32)
    beta = _ONE if accumulate else _ZERO
    target = device_pointer(out)
    lt.matmul(
        handle, plan.descriptor, alpha.ctypes.data, device_pointer(b), plan.layouts[0], device_pointer(a), plan.layouts[1],
        beta.ctypes.data, target, plan.layouts[2], target, plan.layouts[2],
        plan.result.ptr, device_pointer(_workspace()), WORKSPACE_BYTES, int(compute_stream()),
    )  # fmt: skip
