"""Matrix products by cuBLASLt, NVIDIA's library, through its Python bindings (`nvmath.bindings.cublasLt`).

cuBLASLt is column-major: it reads a row-major (rows, columns) array as its transpose. So it is given the transposed product,
out.T = op(b).T op(a).T, with the two factors swapped; nothing is ever copied or rearranged.

M, N and K are the library's names for the sizes that `gemm` calls rows, columns and inner: out is (M, N), op(a) (M, K), op(b) (K, N).
They appear in this file only, and in the keys of the kept choices.

A plan (descriptors and the chosen algorithm, see matmul_search) is made once for each kind of product, and kept. A later call sets
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
LARGEST_ALIGNMENT = 256  # bytes: what cuBLASLt assumes of pointers by default
CANDIDATES = 8  # algorithms tried for each kind of product; with 16, for 30 kinds of d12 and d48, no winner was further down the list

_CUDA_R_32F, _CUDA_R_16BF = 0, 14  # cudaDataType, library_types.h
_CUDA_R_8F = {"e4m3": 28, "e5m2": 29}
_ALGORITHM_BYTES = 64  # cublasLtMatmulAlgo_t


class Kind(NamedTuple):
    """Everything that the choice of an algorithm depends on."""

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
    alignment: int  # bytes, common to all addresses
    float8: tuple = ()  # formats of a and b if they are of eight bits, such as ("e4m3", "e5m2")
    fast_accumulation: bool = False  # with eight bits: partial sums stay in the tensor cores' own, shorter registers

    def __str__(self):
        """One line, the same in every process: the key under which a choice is kept."""
        stored = " ".join(f"{name} {'x'.join(map(str, getattr(self, name)))}" for name in ("out", "a", "b"))
        transposed = "T" * self.transpose_a + "-" * (not self.transpose_a) + "T" * self.transpose_b + "-" * (not self.transpose_b)
        kind = "bf16" if self.dtype == BFLOAT16_BITS else "tf32" if self.tf32 else "fp32"
        if self.float8:
            kind = "*".join(self.float8) + (" fast" if self.fast_accumulation else "")
        extras = f"{self.epilogue}{' accumulate' if self.accumulate else ''}"
        return f"{kind} M{self.M} N{self.N} K{self.K} {transposed} {extras}, {stored}, aligned to {self.alignment}"


def search_algorithms(log_dir=None):
    """From now on choose algorithms by timing them, and keep the choices with the run in log_dir. Returns a list of lines to print."""
    from nvmath.bindings import cublasLt

    _plans.clear()
    return choices.open(device_name(), cublasLt.get_version(), log_dir)


def take_first_algorithms():
    """From now on take the first algorithm that the library proposes."""
    _plans.clear()
    choices.close()


def chosen_algorithms():
    """All choices known so far, for adopt_algorithms in other processes: a dictionary that JSON can hold."""
    return choices.known()


def adopt_algorithms(chosen, search=False):
    """Use the result of chosen_algorithms from another process, and write no file from now on. Returns a list of lines to print.

    search: whether to time algorithms for kinds of product that are not in it; otherwise they take the first that the library proposes.
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
    """(array, its address). The array is kept, since the address is valid only as long as the array lives."""
    array = cuda.device_array(WORKSPACE_BYTES, np.uint8)
    return array, device_pointer(array)


@functools.cache
def _host_scalar(value):
    """(array, its address) of a float32 in host memory, which cuBLASLt reads during the call."""
    array = np.array([value], np.float32)
    return array, array.ctypes.data


def _set(setter, getter, target, attribute, value):
    buffer = np.array([value], getter(attribute))
    setter(target, attribute, buffer.ctypes.data, buffer.nbytes)


class Plan:
    """One kind of product, ready to run: its descriptors and its algorithm."""

    def __init__(self, kind):
        self.kind = kind
        self.lt, self.handle = _library()
        self.descriptor = self._make_descriptor()
        self.layouts = [  # of cuBLASLt's A, B, D; its A is our b, its B is our a: see the top of this file
            self._make_layout(kind.b, *((kind.N, kind.K) if kind.transpose_b else (kind.K, kind.N)), kind.float8[1:]),
            self._make_layout(kind.a, *((kind.K, kind.M) if kind.transpose_a else (kind.M, kind.K)), kind.float8[:1]),
            self._make_layout(kind.out, kind.M, kind.N, ()),
        ]
        self.pointer = np.zeros(1, np.int64)  # through which an epilogue's pointer is passed
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
        if kind.float8:
            values[attributes.FAST_ACCUM] = int(kind.fast_accumulation)
        for attribute, value in values.items():
            _set(lt.matmul_desc_set_attribute, lt.get_matmul_desc_attribute_dtype, descriptor, attribute, value)
        return descriptor

    def _make_layout(self, stored, rows, columns, float8):
        lt = self.lt
        cuda_type = _CUDA_R_8F[float8[0]] if float8 else _cuda_type(self.kind.dtype)
        layout = lt.matrix_layout_create(cuda_type, columns, rows, stored[-1])
        if len(stored) == 3:
            for attribute, value in (
                (lt.MatrixLayoutAttribute.BATCH_COUNT, self.kind.out[0]),
                (lt.MatrixLayoutAttribute.STRIDED_BATCH_OFFSET, stored[1] * stored[2]),
            ):
                _set(lt.matrix_layout_set_attribute, lt.get_matrix_layout_attribute_dtype, layout, attribute, value)
        return layout

    def candidates(self, count):
        """The library's first `count` algorithms, best guess first, each as bytes. Raises RuntimeError if there is none."""
        lt, (b, a, out) = self.lt, self.layouts
        preference, attributes = lt.matmul_preference_create(), lt.MatmulPreferenceAttribute
        for attribute, value in (
            (attributes.MAX_WORKSPACE_BYTES, WORKSPACE_BYTES),
            (attributes.REDUCTION_SCHEME_MASK, lt.ReductionScheme.COMPUTE_TYPE),  # partial sums are added in float32, not in bfloat16
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
        """True if the library can run this algorithm (bytes) on this GPU, within the workspace."""
        b, a, out = self.layouts
        result, bits = np.zeros(1, self.lt.matmul_heuristic_result_dtype), np.frombuffer(algorithm, np.uint8)
        try:
            self.lt.matmul_algo_check(self.handle, self.descriptor, b, a, out, out, bits.ctypes.data, result.ctypes.data)
        except self.lt.cuBLASLtError:
            return False
        return result["state"][0] == 0 and result["workspace_size"][0] <= WORKSPACE_BYTES

    def use(self, algorithm):
        """From now on run this algorithm (bytes)."""
        self.algorithm = np.frombuffer(algorithm, np.uint8).copy()
        self.algorithm_address = self.algorithm.ctypes.data

    # Parameters: what differs between two products of one kind.
    def launch(self, out, a, b, alpha, bias, aux, a_scale=0, b_scale=0):
        """Launch the product. All but alpha are addresses; bias, aux and the scales may be 0."""
        lt, attributes, (layout_b, layout_a, layout_out) = self.lt, self.lt.MatmulDescAttribute, self.layouts
        pointers = (
            (attributes.BIAS_POINTER, bias), (attributes.EPILOGUE_AUX_POINTER, aux),
            (attributes.A_SCALE_POINTER, b_scale), (attributes.B_SCALE_POINTER, a_scale),
        )  # fmt: skip
        for attribute, address in pointers:
            if address:
                self.pointer[0] = address
                lt.matmul_desc_set_attribute(self.descriptor, attribute, self.pointer_address, 8)
        _, alpha = _host_scalar(alpha)
        _, beta = _host_scalar(1.0 if self.kind.accumulate else 0.0)
        _, workspace = _workspace()
        lt.matmul(
            self.handle, self.descriptor, alpha, b, layout_b, a, layout_a, beta, out, layout_out, out, layout_out,
            self.algorithm_address, workspace, WORKSPACE_BYTES, int(compute_stream()),
        )  # fmt: skip


_plans = {}  # Kind -> Plan


def _cuda_type(dtype):
    return _CUDA_R_16BF if dtype == BFLOAT16_BITS else _CUDA_R_32F


def _make_plan(kind, out, *addresses):
    """The Plan of a new kind. out: device array. addresses: the other arguments of Plan.launch."""
    plan = Plan(kind)
    kept = choices.get(str(kind))
    if kept is not None and len(kept) == _ALGORITHM_BYTES and plan.accepts(kept):
        plan.use(kept)
    elif not choices.searching or _recording():  # launches that are being recorded cannot be timed
        plan.use(plan.candidates(1)[0])
    else:
        best = _search(plan, plan.candidates(CANDIDATES), out, *addresses)
        plan.use(best)
        choices.put(str(kind), best)
    _plans[kind] = plan
    return plan


def _recording():
    """True while the launches of the compute stream are being recorded in a graph."""
    from cuda.bindings import driver

    error, status = driver.cuStreamIsCapturing(int(compute_stream()))
    return error != driver.CUresult.CUDA_SUCCESS or status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE


@functools.cache
def _events():
    return [cuda.event(timing=True) for _ in range(CANDIDATES + 1)]


def _search(plan, algorithms, out, *others):
    """The fastest algorithm, timed on the arrays themselves: on real data, since a GPU multiplies zeros faster.

    An output that is overwritten may be written any number of times; the actual product comes last. One that is accumulated into may not:
    during the search a copy takes its place. If there is no memory for the copy, the library's first algorithm is used.
    """
    target = device_pointer(out)
    if len(algorithms) == 1:
        return algorithms[0]
    if plan.kind.accumulate:
        try:
            stand_in = cuda.device_array(out.shape, out.dtype)
        except cuda.cudadrv.driver.CudaAPIError:
            return algorithms[0]
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

    best = algorithms[fastest(measure, len(algorithms))]
    if plan.kind.accumulate:
        del stand_in
        cuda.current_context().memory_manager.deallocations.clear()  # free it now, not while a graph is being recorded
    return best


def _epilogue(bias, save_before_gelu, before_gelu):
    """Name of cuBLASLt's epilogue: what it does with the product before writing it."""
    if before_gelu is not None:
        return "DGELU"
    if save_before_gelu is not None:
        return "GELU_AUX_BIAS"
    return "DEFAULT" if bias is None else "BIAS"


# As many parameters as gemm.gemm, whose arguments it takes.
def cublaslt_gemm(
    out, a, b, rows, columns, inner, transpose_a, transpose_b, alpha, accumulate, bias, tf32, save_before_gelu, before_gelu
):  # fmt: skip
    """Arguments as in `gemm.gemm`; tf32: whether float32 factors may be rounded to TF32."""
    aux = save_before_gelu if before_gelu is None else before_gelu
    addresses = [device_pointer(array) for array in (out, a, b)]
    kind = Kind(
        M=rows, N=columns, K=inner, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate,
        epilogue=_epilogue(bias, save_before_gelu, before_gelu), out=out.shape, a=a.shape, b=b.shape, dtype=out.dtype,
        tf32=tf32 and out.dtype != BFLOAT16_BITS, alignment=_common_alignment(addresses, (out, a, b)),
    )  # fmt: skip
    _launch(kind, out, addresses, float(alpha), 0 if bias is None else device_pointer(bias), 0 if aux is None else device_pointer(aux))


# As many parameters as gemm.float8_gemm, whose arguments it takes.
def cublaslt_float8_gemm(out, a, b, a_scale, b_scale, formats, accumulate, bias, fast_accumulation):
    """Arguments as in `gemm.float8_gemm`; formats: their names."""
    addresses = [device_pointer(array) for array in (out, a, b)]
    (rows, inner), columns = a.shape, b.shape[0]
    kind = Kind(
        M=rows, N=columns, K=inner, transpose_a=False, transpose_b=True, accumulate=accumulate, epilogue=_epilogue(bias, None, None),
        out=out.shape, a=a.shape, b=b.shape, dtype=out.dtype, tf32=False, alignment=_common_alignment(addresses, (out, a, b)),
        float8=formats, fast_accumulation=fast_accumulation,
    )  # fmt: skip
    scales = device_pointer(a_scale), device_pointer(b_scale)
    _launch(kind, out, addresses, 1.0, 0 if bias is None else device_pointer(bias), 0, *scales)


def _common_alignment(addresses, arrays):
    """Bytes: the largest power of two, up to LARGEST_ALIGNMENT, that divides all addresses and the distances between matrices."""
    bits = LARGEST_ALIGNMENT
    for address in addresses:
        bits |= address
    if arrays[0].ndim == 3:
        for matrices in arrays:
            bits |= math.prod(matrices.shape[1:]) * matrices.dtype.itemsize
    return bits & -bits  # the lowest bit set in any


def _launch(kind, out, addresses, *others):
    """Launch a product of this kind. addresses: of out, a and b. others: the arguments of Plan.launch that follow."""
    plan = _plans.get(kind) or _make_plan(kind, out, *addresses[1:], *others)
    plan.launch(*addresses, *others)
