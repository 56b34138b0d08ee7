"""Attention by cuDNN, in bfloat16: an alternative to this package's kernels, and the yardstick for them.

Optional: `pip install -e '.[cudnn13]'` installs the library and its Python package. Nothing else needs them. One H200, 2026-11-22, cuDNN
9.19, T=1024, launched back to back, forward + backward: 0.160 + 0.596 ms at B=16, NH=25, HS=64 (wgmma.py 0.165 + 0.492); 0.146 + 0.518
at B=8, NH=32, HS=80 (mma.py 0.238 + 0.740).

cuDNN gets a graph of tensors (shapes, strides, types) and one operation, and chooses a kernel. Nothing is copied or rearranged: q, k, v and
their gradients are views of the packed rows, given by strides and the address of their first element.

    | array           | shape       | cuDNN sees                                               | forward | backward       |
    | --------------- | ----------- | -------------------------------------------------------- | ------- | -------------- |
    | qkv, dqkv       | (N, 3C)     | three of (B, NH, T, HS), strides (T 3C, HS, 3C, 1)       | [r]     | [r], dqkv [w]  |
    | out, dout       | (N, C)      | (B, NH, T, HS), strides (T C, HS, C, 1)                  | [w]     | [r]            |
    | lse             | (B, NH, T)  | "stats" (B, NH, T, 1): max + ln Σ exp(score - max)       | [w]     | [r]            |

    | scratch         | flat        | cuDNN's workspace                                        | [w]     | [w]            |

Backward uses cuDNN's deterministic algorithm, so that every run gives the same bits. It costs memory: cuDNN then keeps every dscore in its
workspace (see scratch_size). With atomic sums it would need an eighth of that and be a little faster: on one H200, cuDNN 9.19, at B=16,
T=1024, NH=25, HS=64, 0.548 ms instead of 0.596.

Reference: cuDNN frontend documentation, "Scaled Dot Product Attention" (`sdpa`, `sdpa_backward`).
"""

import functools
from dataclasses import dataclass

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import compute_stream, device_pointer, real_gpu
from gpt2_numba.gpu.launches import observable
from gpt2_numba.integers import round_up

# 9.16. Older versions copy a list of lengths from the host in every call if T is not a multiple of 128, which a CUDA graph cannot record.
OLDEST_LIBRARY = 91600
REMEDY = "install it with: pip install -e '.[cudnn13]' ('.[cudnn12]' for CUDA 12)"
ALTERNATIVE = "Choose another attention (--attention numba)"
DSCORES_ROWS, DSCORES_COLUMNS = 64, 128  # cuDNN pads dscores to multiples of these: 192 x 256 at T = 130
OVERHEAD_BYTES = 4096  # what a plan may need in addition; 256 bytes were seen


@dataclass(frozen=True)
class Plan:
    """A graph ready to run, its tensors by name, and the size of its workspace."""

    graph: object
    tensors: dict
    workspace_bytes: int


# ------------------------------------------------------------------------------------------------- availability


def cudnn_available():
    """True if cuDNN's attention can be used: a real GPU, the library and its Python package, recent enough. Looked up once."""
    return _obstacle() is None


@functools.cache
def _obstacle():
    """Why cuDNN cannot be used here, as text; None if it can."""
    if not real_gpu():
        return "there is no real GPU"
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("cudart")  # cudnn searches only the system's path, but uses a library that is already loaded
        import cudnn

        version = cudnn.backend_version()
    except (ImportError, OSError, RuntimeError, AssertionError) as error:  # not installed, partly installed, or for another CUDA version
        return f"the Python package `cudnn` or its library cannot be loaded ({error}): {REMEDY}"
    if version < OLDEST_LIBRARY:
        return f"cuDNN {cudnn.backend_version_string()} is too old; 9.16 or later is needed: {REMEDY}"
    return None


def require_cudnn():
    """Raise UserError, with the reason, if cuDNN cannot be used."""
    obstacle = _obstacle()
    if obstacle is not None:
        raise UserError(f"attention by cuDNN: {obstacle}. {ALTERNATIVE}")


@functools.cache
def _library():
    """The package `cudnn` and a handle that launches on the compute stream. Raises UserError if cuDNN cannot be used."""
    require_cudnn()
    import cudnn

    stream = int(compute_stream())  # first: this creates the GPU's context, to which the handle belongs
    handle = cudnn.create_handle()
    cudnn.set_stream(handle, stream)
    return cudnn, handle


# ---------------------------------------------------------------------------------------------------- the graphs


def head_layout(B, T, NH, HS, parts):
    """Dimensions and strides of (B, NH, T, HS) in rows of `parts` * C elements: 3 for q, k or v, 1 for out."""
    row = parts * NH * HS
    return {"dim": (B, NH, T, HS), "stride": (T * row, HS, row, 1)}


def stats_layout(B, T, NH):
    """Dimensions and strides of (B, NH, T) as cuDNN's stats."""
    return {"dim": (B, NH, T, 1), "stride": (NH * T, T, 1, 1)}


def describe_forward(cudnn, graph, B, T, NH, HS):
    """Add forward to a graph; return its tensors by name."""
    qkv = head_layout(B, T, NH, HS, 3)
    tensors = {name: graph.tensor(name=name, **qkv) for name in ("q", "k", "v")}
    out, lse = graph.sdpa(**tensors, generate_stats=True, **_causal_and_scaled(cudnn, HS))
    _make_output(out, **head_layout(B, T, NH, HS, 1))
    _make_output(lse, **stats_layout(B, T, NH)).set_data_type(cudnn.data_type.FLOAT)
    return {**tensors, "out": out, "lse": lse}


def describe_backward(cudnn, graph, B, T, NH, HS):
    """Add backward to a graph; return its tensors by name."""
    qkv, out = head_layout(B, T, NH, HS, 3), head_layout(B, T, NH, HS, 1)
    tensors = {name: graph.tensor(name=name, **(out if "out" in name else qkv)) for name in ("q", "k", "v", "out", "dout")}
    tensors["lse"] = graph.tensor(name="lse", data_type=cudnn.data_type.FLOAT, **stats_layout(B, T, NH))
    q, k, v, out, dout, lse = tensors.values()
    gradients = graph.sdpa_backward(
        q=q, k=k, v=v, o=out, dO=dout, stats=lse, use_deterministic_algorithm=True, **_causal_and_scaled(cudnn, HS)
    )  # fmt: skip
    for name, gradient in zip(("dq", "dk", "dv"), gradients):
        tensors[name] = _make_output(gradient, **qkv)
    return tensors


def _causal_and_scaled(cudnn, HS):
    alignment = cudnn.diagonal_alignment.TOP_LEFT
    return {"attn_scale": HS**-0.5, "diagonal_alignment": alignment, "diagonal_band_right_bound": 0}


def _make_output(tensor, dim, stride):
    return tensor.set_output(True).set_dim(dim).set_stride(stride)


@functools.cache
def _plan(describe, B, T, NH, HS):
    """The plan for a shape, made once, in some tenths of a second: cuDNN chooses and compiles a kernel. Raises UserError if it has none."""
    cudnn, handle = _library()
    types = cudnn.data_type
    graph = cudnn.pygraph(
        handle=handle, io_data_type=types.BFLOAT16, intermediate_data_type=types.FLOAT, compute_data_type=types.FLOAT
    )  # fmt: skip
    tensors = describe(cudnn, graph, B, T, NH, HS)
    try:
        graph.build([cudnn.heur_mode.A])
    except cudnn.cudnnGraphNotSupportedError as error:
        raise UserError(
            f"cuDNN {cudnn.backend_version_string()} has no attention for B={B}, T={T}, NH={NH}, HS={HS} on this GPU: {error}. "
            + ALTERNATIVE
        ) from error
    return Plan(graph, tensors, graph.get_workspace_size())


# ----------------------------------------------------------------------------------------------------- launchers


def scratch_size(B, T, NH, HS):
    """Float32 values of scratch memory: backward's workspace, dscores in bfloat16 and delta in float32. Forward needs next to nothing.

    A formula, since querying cuDNN takes half a second for each B that is considered. It is the one for Hopper in the source of cuDNN's
    frontend, and agrees with 9.19: 801.6 MiB at B=16, T=1024, NH=25; 1539.0 at B=64, NH=12; 197,904 bytes at B=1, T=130, NH=2. _run checks
    that it is enough.
    """
    rows, columns = round_up(T, DSCORES_ROWS), round_up(T, DSCORES_COLUMNS)
    return (B * NH * (2 * rows * columns + 4 * rows) + OVERHEAD_BYTES) // 4


@observable
def attention_forward(out, lse, qkv, scratch):
    """Arguments as in the package's attention_forward, checked. Raises UserError if cuDNN is missing or does not support the shape."""
    pointers = {**_parts("qkv", qkv), "out": device_pointer(out), "lse": device_pointer(lse)}
    _run(_plan(describe_forward, *_sizes(out, lse)), pointers, scratch)


@observable
def attention_backward(dqkv, dout, out, lse, qkv, scratch):
    """Arguments as in the package's attention_backward, checked. Raises UserError as attention_forward does."""
    pointers = {name: device_pointer(array) for name, array in (("out", out), ("dout", dout), ("lse", lse))}
    pointers |= {**_parts("qkv", qkv), **_parts(("dq", "dk", "dv"), dqkv)}
    _run(_plan(describe_backward, *_sizes(out, lse)), pointers, scratch)


def _sizes(out, lse):
    B, NH, T = lse.shape
    return B, T, NH, out.shape[1] // NH


def _parts(names, rows):
    """Name -> address of the first element, for the three parts of packed rows."""
    part_bytes = rows.shape[1] // 3 * rows.dtype.itemsize
    return {name: device_pointer(rows) + i * part_bytes for i, name in enumerate(names)}


def _run(plan, pointers, scratch):
    """Launch on the compute stream. After a plan's first call it neither allocates nor waits, so a CUDA graph can record it."""
    cudnn, handle = _library()
    if plan.workspace_bytes > scratch.nbytes:
        raise UserError(
            f"cuDNN {cudnn.backend_version_string()} needs {plan.workspace_bytes:,} bytes of workspace on this GPU, but at most "
            f"{scratch.nbytes:,} were expected. {ALTERNATIVE}"
        )
    buffers = {plan.tensors[name]: pointer for name, pointer in pointers.items()}
    plan.graph.execute(buffers, device_pointer(scratch), handle=handle)
