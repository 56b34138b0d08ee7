"""Matrix products by cuBLASLt, NVIDIA's library, through its Python bindings (`nvmath.bindings.cublasLt`).

cuBLASLt thinks in columns: it reads a row-major (rows, cols) array as its transpose. So it is asked for the transposed product,
out.T = op(B).T op(A).T, with the two factors changed over; nothing is ever copied or rearranged.

A plan (descriptors and the algorithm chosen, see matmul_search) is made once for each kind of product, and kept. A call afterwards sets
two pointers and launches; it neither allocates nor waits, so it can be recorded in a CUDA graph.
Reference: cuBLAS documentation, "Using the cuBLASLt API".
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import BFLOAT16_BITS, compute_stream, device_name, device_pointer
from gpt2_numba.gpu.matmul_search import choices, fastest

WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends on Hopper
LARGEST_ALIGNMENT = 256  # bytes: what cuBLASLt takes for granted of pointers unless told otherwise
CANDIDATES = 8  # algorithms that are tried for each kind of product; of 16, for 30 kinds of d12 and d48, no winner came later

_CUDA_R_32F, _CUDA_R_16BF = 0, 14  # cudaDataType, library_types.h
_ALGORITHM_BYTES = 64  # cublasLtMatmulAlgo_t


class Kind(NamedTuple):
    """All that the choice of an algorithm depends on."""

    M: int
    N: int
    K: int
    transpose_a: bool
    transpose_b: bool
    accumulate: bool
    epilogue: str
    out: tuple  # shapes as stored: (rows, row length) or (batch, rows, row length)
    a: tuple
    b: tuple
    dtype: np.dtype
    tf32: bool
    alignment: int  # bytes, of all addresses together

    def __str__(self):
        """One line, the same in every process: the name under which a choice is kept."""
        stored = " ".join(f"{name} {'x'.join(map(str, getattr(self, name)))}" for name in ("out", "a", "b"))
        transposed = "T" * self.transpose_a + "-" * (not self.transpose_a) + "T" * self.transpose_b + "-" * (not self.transpose_b)
        kind = "bf16" if self.dtype == BFLOAT16_BITS else "tf32" if self.tf32 else "fp32"
        extras = f"{self.epilogue}{' accumulate' if self.accumulate else ''}"
        return f"{kind} M{self.M} N{self.N} K{self.K} {transposed} {extras}, {stored}, aligned to {self.alignment}"


def search_algorithms(log_dir=None):
    """Choose algorithms by trying from now on, and keep the choices with the run in log_dir. Returns lines to be printed."""
    from nvmath.bindings import cublasLt

    _plans.clear()
    return choices.open(device_name(), cublasLt.get_version(), log_dir)


def take_first_algorithms():
    """Take the first algorithm that the library names from now on."""
    _plans.clear()
    choices.close()


def chosen_algorithms():
    """All algorithms that are known so far, for adopt_algorithms in other processes: a dictionary made of JSON's types."""
    return choices.known()


def adopt_algorithms(chosen, search=False):
    """Take what chosen_algorithms has given in another process, and write no file from now on. Returns lines to be printed.

    search: whether to choose by trying what is not among it; else it is the first algorithm that the library names.
    """
    from nvmath.bindings import cublasLt

    _plans.clear()
    return choices.adopt(chosen, device_name(), cublasLt.get_version(), search)


@functools.cache
def _library():
    from nvmath.bindings import cublasLt

    return cublasLt, cublasLt.create()


@functools.cache
def _workspace():
    """(array, its address): whoever keeps the address has to keep the array."""
    array = cuda.device_array(WORKSPACE_BYTES, np.uint8)
    return array, device_pointer(array)


@functools.cache
def _on_host(number):
    """(array, its address) of a float32 that cuBLASLt reads when it is called."""
    array = np.array([number], np.float32)
    return array, array.ctypes.data


def _set(setter, getter, target, attribute, value):
    buffer = np.array([value], getter(attribute))
    setter(target, attribute, buffer.ctypes.data, buffer.nbytes)


class Plan:
    """One kind of product, ready to run: descriptors, and the algorithm."""

    def __init__(self, kind):
        self.kind = kind
        self.lt, self.handle = _library()
        self.descriptor = self._make_descriptor()
        self.layouts = [  # of cuBLASLt's A, B, D; its A is our b, its B our a: see the module's docstring
            self._make_layout(kind.b, *((kind.N, kind.K) if kind.transpose_b else (kind.K, kind.N))),
            self._make_layout(kind.a, *((kind.K, kind.M) if kind.transpose_a else (kind.M, kind.K))),
            self._make_layout(kind.out, kind.M, kind.N),
        ]
        self.pointer = np.zeros(1, np.int64)  # in which an epilogue's pointer is handed over
        self.pointer_address = self.pointer.ctypes.data
        self.algorithm = None  # 64 bytes as an array
        self.algorithm_address = 0

    def _make_descriptor(self):
        from nvmath.bindings import cublas

        lt, kind = self.lt, self.kind
        compute = cublas.ComputeType.COMPUTE_32F_FAST_TF32 if kind.tf32 else cublas.ComputeType.COMPUTE_32F
        descriptor = lt.matmul_desc_create(compute, _CUDA_R_32F)
        attributes = lt.MatmulDescAttribute
        values = {
            attributes.TRANSA: cublas.Operation.T if kind.transpose_b else cublas.Operation.N,
            attributes.TRANSB: cublas.Operation.T if kind.transpose_a else cublas.Operation.N,
            attributes.EPILOGUE: lt.Epilogue[kind.epilogue],
        }
        if "BIAS" in kind.epilogue:
            values[attributes.BIAS_DATA_TYPE] = _cuda_type(kind.dtype)
        if "GELU" in kind.epilogue:
            values[attributes.EPILOGUE_AUX_LD] = kind.out[-1]
            values[attributes.EPILOGUE_AUX_DATA_TYPE] = _cuda_type(kind.dtype)
        for attribute, value in values.items():
            _set(lt.matmul_desc_set_attribute, lt.get_matmul_desc_attribute_dtype, descriptor, attribute, value)
        return descriptor

    def _make_layout(self, stored, rows, cols):
        lt = self.lt
        layout = lt.matrix_layout_create(_cuda_type(self.kind.dtype), cols, rows, stored[-1])
        if len(stored) == 3:
            for attribute, value in (
                (lt.MatrixLayoutAttribute.BATCH_COUNT, self.kind.out[0]),
                (lt.MatrixLayoutAttribute.STRIDED_BATCH_OFFSET, stored[1] * stored[2]),
            ):
                _set(lt.matrix_layout_set_attribute, lt.get_matrix_layout_attribute_dtype, layout, attribute, value)
        return layout

    def candidates(self, count):
        """The library's first `count` algorithms, best guess first, each as bytes. At least one, or RuntimeError."""
        lt, (b, a, out) = self.lt, self.layouts
        preference, attributes = lt.matmul_preference_create(), lt.MatmulPreferenceAttribute
        for attribute, value in (
            (attributes.MAX_WORKSPACE_BYTES, WORKSPACE_BYTES),
            (attributes.REDUCTION_SCHEME_MASK, lt.ReductionScheme.COMPUTE_TYPE),  # partial sums meet in float32, not in bfloat16
            (attributes.MIN_ALIGNMENT_A_BYTES, self.kind.alignment),
            (attributes.MIN_ALIGNMENT_B_BYTES, self.kind.alignment),
            (attributes.MIN_ALIGNMENT_C_BYTES, self.kind.alignment),
            (attributes.MIN_ALIGNMENT_D_BYTES, self.kind.alignment),
        ):
            _set(lt.matmul_preference_set_attribute, lt.get_matmul_preference_attribute_dtype, preference, attribute, value)
        results, found = np.zeros(count, lt.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
        try:
            lt.matmul_algo_get_heuristic(
                self.handle, self.descriptor, b, a, out, out, preference, count, results.ctypes.data, found.ctypes.data
            )
        finally:
            lt.matmul_preference_destroy(preference)
        algorithms = [result["algo"].tobytes() for result in results[: found[0]] if result["state"] == 0]
        if not algorithms:
            raise RuntimeError(f"cuBLASLt has no algorithm for {self.kind}")
        return algorithms

    def accepts(self, algorithm):
        """True if the library can run this algorithm (bytes) here, within the workspace."""
        b, a, out = self.layouts
        result, bits = np.zeros(1, self.lt.matmul_heuristic_result_dtype), np.frombuffer(algorithm, np.uint8)
        try:
            self.lt.matmul_algo_check(self.handle, self.descriptor, b, a, out, out, bits.ctypes.data, result.ctypes.data)
        except self.lt.cuBLASLtError:
            return False
        return result["state"][0] == 0 and result["workspace_size"][0] <= WORKSPACE_BYTES

    def use(self, algorithm):
        """Run this algorithm (bytes) from now on."""
        self.algorithm = np.frombuffer(algorithm, np.uint8).copy()
        self.algorithm_address = self.algorithm.ctypes.data

    def launch(self, out, a, b, alpha, bias, aux):
        """Start the product. out, a, b, bias, aux: addresses; bias and aux may be 0."""
        lt, attributes, (layout_b, layout_a, layout_out) = self.lt, self.lt.MatmulDescAttribute, self.layouts
        for attribute, address in ((attributes.BIAS_POINTER, bias), (attributes.EPILOGUE_AUX_POINTER, aux)):
            if address:
                self.pointer[0] = address
                lt.matmul_desc_set_attribute(self.descriptor, attribute, self.pointer_address, 8)
        _, alpha = _on_host(alpha)
        _, beta = _on_host(1.0 if self.kind.accumulate else 0.0)
        _, workspace = _workspace()
        lt.matmul(
            self.handle, self.descriptor, alpha, b, layout_b, a, layout_a, beta, out, layout_out, out, layout_out,
            self.algorithm_address, workspace, WORKSPACE_BYTES, int(compute_stream()),
        )  # fmt: skip


_plans = {}  # Kind -> Plan


def _cuda_type(dtype):
    return _CUDA_R_16BF if dtype == BFLOAT16_BITS else _CUDA_R_32F


def _make_plan(kind, out, *addresses):
    """The Plan for a kind that comes for the first time. out: device array; addresses: the other arguments of Plan.launch."""
    plan = Plan(kind)
    kept = choices.get(str(kind))
    if kept is not None and len(kept) == _ALGORITHM_BYTES and plan.accepts(kept):
        plan.use(kept)
    elif not choices.searching or _recording():  # what is being recorded cannot be timed
        plan.use(plan.candidates(1)[0])
    else:
        algorithms = plan.candidates(CANDIDATES)
        best = 0 if len(algorithms) == 1 else _search(plan, algorithms, out, *addresses)
        plan.use(algorithms[best])
        choices.put(str(kind), algorithms[best])
    _plans[kind] = plan
    return plan


def _recording():
    """True while the compute stream's launches are being recorded in a graph."""
    from cuda.bindings import driver

    error, status = driver.cuStreamIsCapturing(int(compute_stream()))
    return error != driver.CUresult.CUDA_SUCCESS or status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE


@functools.cache
def _events():
    return [cuda.event(timing=True) for _ in range(CANDIDATES + 1)]


def _search(plan, algorithms, out, *others):
    """Index of the fastest algorithm, tried on the arrays themselves: real numbers, since a GPU multiplies zeros faster.

    What is overwritten may be written any number of times, the last time by the product that was asked for. What is accumulated must not:
    it gets an array of its own for as long as the search takes. If there is no memory for it, the library's first algorithm is the best.
    """
    target = device_pointer(out)
    if plan.kind.accumulate:
        try:
            stand_in = cuda.device_array(out.shape, out.dtype)
        except cuda.cudadrv.driver.CudaAPIError:
            return 0
        stand_in.copy_to_device(out, stream=compute_stream())
        target = device_pointer(stand_in)
    stream, events = compute_stream(), _events()

    def measure(order):
        events[0].record(stream)
        for i, candidate in enumerate(order):
            plan.use(algorithms[candidate])
            plan.launch(target, *others)
            events[i + 1].record(stream)
        events[len(order)].synchronize()
        return [events[i].elapsed_time(events[i + 1]) for i in range(len(order))]

    best = fastest(measure, len(algorithms))
    if plan.kind.accumulate:
        del stand_in
        cuda.current_context().memory_manager.deallocations.clear()  # now, and not when something is being recorded
    return best


def _epilogue(bias, gelu_to, gelu_of):
    """Name of cuBLASLt's epilogue: what it does with the product before it writes it."""
    if gelu_of is not None:
        return "DGELU"
    if gelu_to is not None:
        return "GELU_AUX_BIAS"
    return "DEFAULT" if bias is None else "BIAS"


def cublaslt_gemm(out, a, b, M, N, K, transpose_a, transpose_b, alpha, accumulate, bias, tf32, gelu_to, gelu_of):
    """Arguments as in `gemm.gemm`."""
    aux = gelu_to if gelu_of is None else gelu_of
    at_out, at_a, at_b = device_pointer(out), device_pointer(a), device_pointer(b)
    steps = at_out | at_a | at_b | LARGEST_ALIGNMENT
    if out.ndim == 3:
        for matrices in (out, a, b):
            steps |= math.prod(matrices.shape[1:]) * matrices.dtype.itemsize
    kind = Kind(
        M, N, K, transpose_a, transpose_b, accumulate, _epilogue(bias, gelu_to, gelu_of), out.shape, a.shape, b.shape,
        out.dtype, tf32 and out.dtype != BFLOAT16_BITS, steps & -steps,
    )  # fmt: skip
    others = at_a, at_b, float(alpha), 0 if bias is None else device_pointer(bias), 0 if aux is None else device_pointer(aux)
    plan = _plans.get(kind) or _make_plan(kind, out, *others)
    plan.launch(at_out, *others)
