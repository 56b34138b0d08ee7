"""Attention, fast: the (T, T) matrices of scores and weights never reach the GPU's memory, and products run on tensor cores.

Compared with the plain kernels of layers/attention:

    Work is done in tiles. A block takes several queries of one head, loops over the keys, and uses every key and value that it has copied
    to shared memory for all of its queries. The plain kernel has one query per block, so each key it loads is used once.

    Products of tiles run on tensor cores. Scores, weights and their gradients stay in the registers in which the tensor core leaves them.

    While the tensor cores work on one tile, cp.async brings the next from memory.

Several engines share these ideas and one signature (matmuls is the exception: it keeps weights in memory). `choose_engine`, the type, the
head size and the GPU decide which one runs:

    matmuls     float32, and bfloat16 with head sizes that no other engine takes: whole matrices of weights, multiplied by cuBLASLt, for
                only as many sequences at a time as fit in the GPU's cache
    tf32        float32 where products may round to TF32 (10 bits of mantissa): tile by tile on tensor cores, as mma
    mma         bfloat16: tile by tile on tensor cores
    wgmma       bfloat16, heads of 64: the same with Hopper's larger, asynchronous instructions
    cudnn       bfloat16: NVIDIA's library, if installed, when requested or where it is faster (FASTER_BY_CUDNN)

One H200, 2026-11-22, T = 1,024, launched back to back, milliseconds forward + backward (python -m dev.bench.attention):

                            B=16, NH=25, HS=64      B=64, NH=12, HS=64
    wgmma                     0.165 + 0.492           0.308 + 0.901
    mma                       0.230 + 0.835           0.427 + 1.530
    tf32                      0.477 + 1.492           0.889 + 2.737
    cudnn                     0.160 + 0.596           0.298 + 1.101         deterministic, like all engines here
    FlashAttention-2          0.254 + 0.740           0.467 + 1.380         PyTorch's, for comparison

    | array           | shape, type                  | forward | backward                                                                  |
    | --------------- | ---------------------------- | ------- | ------------------------------------------------------------------------- |
    | qkv, dqkv       | (N, 3C) float32 or bfloat16  | [r]     | qkv [r] saved, dqkv [w]. A row: q of all heads, then k, then v            |
    | out, dout       | (N, C) same type             | [w]     | [r], out saved. A row: the heads side by side; HS a multiple of 8         |
    | lse             | (B, NH, T) float32           | [w]     | [r] saved. Natural logarithm                                              |
    | dbias           | (3C,) same type              |         | [+] Σ_rows dqkv, as rounded: of the layer below. May be None              |
    | scratch         | flat, float32                | [w]     | [w] attention_scratch_size(...) values: delta, whole matrices, sums       |
"""

import functools

from gpt2_numba.gpu.argument_checks import check_arrays, check_grid, check_on_device, check_scratch, check_width
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, device_properties, real_gpu
from gpt2_numba.gpu.column_sums import bias_backward
from gpt2_numba.gpu.gemm import tf32_allowed
from gpt2_numba.gpu.reductions import partials_size
from gpt2_numba.layers.attention import SHAPE_HINT, sizes_of
from gpt2_numba.layers.fast.attention import cudnn, matmuls, mma, tf32, wgmma

CHOICES = ("auto", "numba", "cudnn")
# Head sizes for which `auto` uses cuDNN on Hopper: those where its deterministic attention was measured to be faster than the kernels here.
# One H200, cuDNN 9.19, T=1024, forward + backward in ms, launched back to back (python -m dev.bench.attention):
#     80 at B=8, NH=32    0.146 + 0.518    mma    0.238 + 0.740
#    128 at B=8, NH=16    0.081 + 0.290    mma    0.170 + 0.565
#     64 at B=16, NH=25   0.160 + 0.596    wgmma  0.165 + 0.492
# 96 has not been measured. With these head sizes, a model's bits depend on whether cuDNN is installed.
FASTER_BY_CUDNN = 80, 128

_choice = "auto"


def choose_engine(name):
    """Choose the engine for bfloat16 on a GPU, for the whole process. Call it before creating the model: engines differ in scratch memory.

    auto    cudnn where it was measured to be faster (FASTER_BY_CUDNN) and is installed, numba elsewhere
    numba   the kernels of this package
    cudnn   NVIDIA's library
    Raises ValueError if `name` is none of these, UserError if it is cudnn and cuDNN cannot be used here.
    """
    global _choice
    if name not in CHOICES:
        raise ValueError(f"choose_engine: name must be one of {', '.join(CHOICES)}, got {name!r}")
    if name == "cudnn":
        cudnn.require_cudnn()
    _choice = name


def engine_name(array, HS):
    """Name of the engine, that is of its module, for device arrays of this type with HS channels per head."""
    return engine(array.dtype, HS).__name__.rpartition(".")[2]


def engine(dtype, HS):
    """The module whose attention_forward and attention_backward run on the device, for a storage type and HS channels per head."""
    if dtype == BFLOAT16_BITS and _uses_cudnn(HS):
        return cudnn
    if dtype == FLOAT32 and tf32_allowed() and tf32.can_serve(HS):
        return tf32
    if dtype != BFLOAT16_BITS or HS not in mma.HEAD_SIZES:
        return matmuls
    return wgmma if HS == wgmma.HS and _on_hopper() else mma


def _uses_cudnn(HS):
    if _choice == "auto":
        return HS in FASTER_BY_CUDNN and _on_hopper() and cudnn.cudnn_available()
    return _choice == "cudnn"


@functools.cache
def _on_hopper():
    return real_gpu() and device_properties()[0] == (9, 0)


def attention_scratch_size(B, T, NH, HS, dtype):
    """Float32 values of scratch memory for batches of up to (B, T) tokens. dtype: the storage type of the activations.

    With heads of 64, mma is given what wgmma needs: a plan for another machine does not know which of the two will run.
    """
    module = engine(dtype, HS)
    sizes_like = wgmma if module is mma and HS == wgmma.HS else module
    return max(sizes_like.scratch_size(B, T, NH, HS), partials_size(3 * NH * HS))  # the latter for dbias


def attention_forward(out, lse, qkv, scratch):
    """Attention over the packed queries, keys and values.

    out [w] (N, C)   lse [w] (B, NH, T), float32   qkv [r] (N, 3C)
    scratch [w] float32, attention_scratch_size(B, T, NH, HS, type) elements; what is enough for a batch is enough for more and shorter
            sequences of as many tokens in all, too, such as questions
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    sizes = sizes_of("attention_forward", out, lse)
    check_arrays("attention_forward", sizes, SHAPE_HINT, out=(out, "N C"), lse=(lse, "f32 B NH T"), qkv=(qkv, "N 3C"))
    module, (B, T, NH, HS) = engine(qkv.dtype, sizes["HS"]), (sizes[name] for name in ("B", "T", "NH", "HS"))
    # In forward only matmuls and cudnn use scratch; cudnn checks how much (the size above is backward's, and more than forward needs).
    _check_for_kernels("attention_forward", sizes, qkv, scratch, module.scratch_size(B, T, NH, HS) if module is matmuls else 0)
    module.attention_forward(out, lse, qkv, scratch)


def attention_backward(dqkv, dout, out, lse, qkv, scratch, dbias=None):
    """Gradient of attention_forward.

    dqkv [w] (N, 3C)   dout [r] (N, C)   out, lse [r] as forward left them   qkv [r] (N, 3C)
    scratch [w] float32, at least attention_scratch_size(B, T, NH, HS, type) elements
    dbias [+] (3C,) or None: the sums of dqkv over its rows, the bias gradient of the linear layer below. wgmma makes them on the way
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    sizes = sizes_of("attention_backward", out, lse)
    check_arrays(
        "attention_backward", sizes, SHAPE_HINT, dqkv=(dqkv, "N 3C"), dbias=(dbias, "3C"),
        dout=(dout, "N C"), out=(out, "N C"), lse=(lse, "f32 B NH T"), qkv=(qkv, "N 3C"),
    )  # fmt: skip
    module, (B, T, NH, HS) = engine(qkv.dtype, sizes["HS"]), (sizes[name] for name in ("B", "T", "NH", "HS"))
    _check_for_kernels("attention_backward", sizes, qkv, scratch, attention_scratch_size(B, T, NH, HS, qkv.dtype))
    if module is wgmma:
        wgmma.attention_backward(dqkv, dout, out, lse, qkv, scratch, dbias)
        return
    module.attention_backward(dqkv, dout, out, lse, qkv, scratch)
    if dbias is not None:
        bias_backward(dbias, dqkv, scratch)


def _check_for_kernels(function, sizes, qkv, scratch, scratch_size):
    if engine(qkv.dtype, sizes["HS"]) not in (wgmma, cudnn):  # the others have a head in each row of the grid
        check_grid(function, **{"B * NH": sizes["B"] * sizes["NH"]})
    check_on_device(function, qkv, "layers/attention")
    check_width(function, HS=sizes["HS"])
    check_scratch(function, scratch, scratch_size)
