"""Causal multi-head self-attention: every token looks back at the tokens before it and takes a weighted mean of their values.

For each of the NH heads, of size HS = C / NH, with its own query q, key k and value v for every token:

    score[t, s] = q[t] · k[s] / sqrt(HS)   for s <= t        att[t] = softmax(score[t])        out[t] = Σ_s att[t, s] v[s]

Backward, from dout:

    dv[s] = Σ_t att[t, s] dout[t]                    datt[t, s] = dout[t] · v[s]
    dscore[t, s] = att[t, s] (datt[t, s] - delta[t])                                      (softmax)
    dq[t] = Σ_s dscore[t, s] k[s] / sqrt(HS)         dk[s] = Σ_t dscore[t, s] q[t] / sqrt(HS)

Vaswani et al. 2017, "Attention Is All You Need", section 3.2 (arXiv:1706.03762).

The weights att are T² numbers a head: too many to keep. Two numbers for each query are kept in their place, for by them one can be had again
whenever it is needed (Dao et al. 2022, "FlashAttention", arXiv:2205.14135):

    lse[t]   = log Σ_s exp(score[t, s])              att[t, s] = exp(score[t, s] - lse[t])
    delta[t] = Σ_s att[t, s] datt[t, s] = out[t] · dout[t]          (since out is the weighted mean: the sum over s is done already)

    | array           | shape             | forward | backward                                                                |
    | --------------- | ----------------- | ------- | ----------------------------------------------------------------------- |
    | qkv, dqkv       | (N, 3C)           | [r]     | qkv [r] saved, dqkv [w]. A row: q of all heads, then k, then v          |
    | out, dout       | (N, C)            | [w]     | [r], out saved. A row: all heads, one after the other                   |
    | lse             | (B, NH, T) float32| [w]     | [r] saved. Natural logarithm                                            |
    | scratch         | flat, float32     | [w]     | [w] attention_scratch_size(...) numbers; not used on the host           |

One signature, several engines, the same mathematics. Which one serves is decided by the type, the head size, the GPU and `choose_engine`:

    reference   NumPy, on the host: read it first
    matmuls     float32: whole matrices of weights, but only of as many sequences at a time as the GPU's cache holds
    tf32        float32 where products may round to TF32: tile by tile on tensor cores, as mma
    mma         bfloat16: tile by tile on tensor cores; the weights never leave the registers
    wgmma       the same with Hopper's larger, asynchronous instructions
    cudnn       bfloat16: NVIDIA's library, where it is installed, and asked for or the faster (FASTER_BY_CUDNN)
"""

import functools

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, device_properties, on_host, real_gpu
from gpt2_numba.gpu.check import check_arrays, check_scratch, check_width
from gpt2_numba.gpu.gemm import tf32_allowed
from gpt2_numba.layers.attention import cudnn, matmuls, mma, tf32, wgmma
from gpt2_numba.layers.attention.reference import attention_backward_ref, attention_forward_ref

HINT = "lse is (B, NH, T), and C is NH * HS."
CHOICES = ("auto", "numba", "cudnn")
# Head sizes for which `auto` takes cuDNN on Hopper: where it was measured to be faster than the kernels here, with bits that repeat. One H200,
# cuDNN 9.19, T=1024, forward + backward in ms, launched again and again (python -m dev.bench.attention):
#     80 at B=8, NH=32    0.146 + 0.518    by mma    0.238 + 0.740
#    128 at B=8, NH=16    0.081 + 0.290    by mma    0.170 + 0.565
#     64 at B=16, NH=25   0.160 + 0.596    by wgmma  0.165 + 0.492
# 96 has not been measured. Where cuDNN is installed, a model with these heads has other bits than where it is not.
FASTER_BY_CUDNN = 80, 128

_choice = "auto"


def choose_engine(name):
    """Whose attention serves bfloat16 on a GPU, for the whole process. Before the model is made, since the engines need different scratch memory.

    auto    whichever is the faster of the other two, as far as it was measured (FASTER_BY_CUDNN), and is installed
    numba   the kernels of this package
    cudnn   NVIDIA's library
    Raises ValueError if `name` is none of these, UserError if it is cudnn and that cannot be used here.
    """
    global _choice
    if name not in CHOICES:
        raise ValueError(f"choose_engine: name must be one of {', '.join(CHOICES)}, got {name!r}")
    if name == "cudnn":
        cudnn.demand_cudnn()
    _choice = name


def engine_name(array, HS):
    """Which engine serves arrays such as this one, of heads of HS numbers: the name of its module."""
    return "reference" if on_host(array) else engine(array.dtype, HS).__name__.rpartition(".")[2]


def engine(dtype, HS):
    """The module whose attention_forward and attention_backward do the work on the device, for heads of HS numbers of a storage type."""
    if dtype == BFLOAT16_BITS and _by_cudnn(HS):
        return cudnn
    if dtype == FLOAT32 and tf32_allowed() and tf32.can_serve(HS):
        return tf32
    if dtype != BFLOAT16_BITS or HS not in mma.HEAD_SIZES:
        return matmuls
    return wgmma if HS == wgmma.HS and _on_hopper() else mma


def _by_cudnn(HS):
    if _choice == "auto":
        return HS in FASTER_BY_CUDNN and _on_hopper() and cudnn.cudnn_available()
    return _choice == "cudnn"


@functools.cache
def _on_hopper():
    return real_gpu() and device_properties()[0] == (9, 0)


def attention_scratch_size(B, T, NH, HS, dtype):
    """How many float32 numbers of scratch memory batches of up to (B, T) tokens need. dtype: the storage type of the activations."""
    return engine(dtype, HS).scratch_size(B, T, NH, HS)


def attention_forward(out, lse, qkv, scratch):
    """Attention over the packed queries, keys and values. The arrays decide: NumPy runs the reference, device arrays kernels.

    out [w] (N, C)   lse [w] (B, NH, T), float32   qkv [r] (N, 3C)
    scratch [w] float32, attention_scratch_size(B, T, NH, HS, type) elements; not used on the host, where it may be None
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    sizes = _sizes("attention_forward", out, lse)
    check_arrays("attention_forward", sizes, HINT, out=(out, "N C"), lse=(lse, "f32 B NH T"), qkv=(qkv, "N 3C"))
    if on_host(qkv):
        return attention_forward_ref(out, lse, qkv)
    _check_for_kernels("attention_forward", sizes, qkv.dtype, scratch)
    engine(qkv.dtype, sizes["HS"]).attention_forward(out, lse, qkv, scratch)


def attention_backward(dqkv, dout, out, lse, qkv, scratch):
    """Gradient of attention_forward.

    dqkv [w] (N, 3C)   dout [r] (N, C)   out, lse [r] as forward left them   qkv [r] (N, 3C)   scratch [w] as in attention_forward
    Raises ValueError or TypeError where a shape or type does not fit.
    """
    sizes = _sizes("attention_backward", out, lse)
    check_arrays(
        "attention_backward", sizes, HINT,
        dqkv=(dqkv, "N 3C"), dout=(dout, "N C"), out=(out, "N C"), lse=(lse, "f32 B NH T"), qkv=(qkv, "N 3C"),
    )  # fmt: skip
    if on_host(qkv):
        return attention_backward_ref(dqkv, dout, out, lse, qkv)
    _check_for_kernels("attention_backward", sizes, qkv.dtype, scratch)
    engine(qkv.dtype, sizes["HS"]).attention_backward(dqkv, dout, out, lse, qkv, scratch)


def _sizes(function, out, lse):
    (B, NH, T), C = lse.shape, out.shape[1]
    if C % NH:
        raise ValueError(f"{function}: C must be a multiple of NH, got C={C} (of out) and NH={NH} (of lse). {HINT}")
    return {"B": B, "NH": NH, "T": T, "HS": C // NH, "C": C, "N": B * T}


def _check_for_kernels(function, sizes, dtype, scratch):
    check_width(function, HS=sizes["HS"])
    check_scratch(function, scratch, attention_scratch_size(sizes["B"], sizes["T"], sizes["NH"], sizes["HS"], dtype))
