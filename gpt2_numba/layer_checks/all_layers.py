"""The two checks of a layer, by its name; and both checks of all layers."""

import functools

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING, bfloat16_supported, gpu_available, real_gpu
from gpt2_numba.gpu.gemm import allow_tf32, tf32_allowed
from gpt2_numba.layer_checks import (
    adamw,
    attention,
    classifier,
    encoder,
    gelu,
    global_norm,
    layernorm,
    matmul,
    mean_loss,
    one_query,
    residual,
)
from gpt2_numba.layer_checks.rows import format_table
from gpt2_numba.layer_checks.running import check_call
from gpt2_numba.layer_checks.sizes import REFERENCE_SIZES, production_sizes, small_sizes

# Name -> the file of its checks, and options for its functions: a file may serve several names.
_FILES = {
    "encoder": (encoder, {}),
    "layernorm": (layernorm, {}),
    "matmul": (matmul, {}),
    "matmul without bias": (matmul, {"has_bias": False}),
    "attention": (attention, {}),
    "attention one query": (one_query, {}),
    "gelu": (gelu, {}),
    "residual": (residual, {}),
    "classifier": (classifier, {}),
    "mean loss": (mean_loss, {}),
    "adamw": (adamw, {}),
    "global norm": (global_norm, {}),
}
LAYERS = tuple(_FILES)
STORAGE = {"fp32": FLOAT32, "bf16": BFLOAT16_BITS}


def check_reference(layer, sizes=REFERENCE_SIZES):
    """Check the NumPy reference of one of LAYERS. Returns a list of Rows."""
    normal = np.random.default_rng(137).standard_normal
    file, options = _FILES[layer]
    return list(file.reference_rows(sizes, normal, **options))


@functools.cache
def layer_functions(layer):
    """Names of the textbook functions that the plain checks of one of LAYERS call, without repetition."""
    return tuple(dict.fromkeys(call.function for call in kernel_calls(layer, REFERENCE_SIZES, FLOAT32, "plain")))


def kernel_calls(layer, sizes, storage, kernels="fast"):
    """The Calls that check_kernel makes, in order."""
    standard_normal = np.random.default_rng(731).standard_normal
    file, options = _FILES[layer]

    def normal(*shape):
        return standard_normal(shape, np.float32)

    if kernels == "fast":
        return file.fast_calls(sizes, normal, storage, **options)
    if kernels == "plain":
        return file.plain_calls(sizes, normal, file.textbook, **options)
    return (call for call in file.plain_calls(sizes, normal, kernels, **options) if hasattr(kernels, call.function))


def check_kernel(layer, precision, sizes, kernels="fast"):
    """Check the kernels of one of LAYERS on the device. Returns a list of Rows.

    precision  "fp32" (TF32 off), "tf32" (float32, TF32 allowed) or "bf16"
    kernels    "fast": those of layers/fast; "plain": those of layers, in fp32;
               or a namespace with functions of your own: those in layer_functions(layer) are checked in place of the plain ones
    Raises ValueError for plain kernels in another precision, or if the namespace has none of the layer's functions.
    """
    if kernels != "fast" and precision != "fp32":
        raise ValueError(f"check_kernel: the plain kernels are float32 only, got precision {precision!r}")
    if not isinstance(kernels, str) and not any(hasattr(kernels, name) for name in layer_functions(layer)):
        raise ValueError(f"check_kernel: none of {', '.join(layer_functions(layer))} is among the functions to check")
    storage = FLOAT32 if precision == "tf32" else STORAGE[precision]
    tf32_was_allowed = tf32_allowed()
    allow_tf32(precision == "tf32")
    try:
        return [row for call in kernel_calls(layer, sizes, storage, kernels) for row in (call.check or check_call)(call, storage)]
    finally:
        allow_tf32(tf32_was_allowed)


def check_all_layers():
    """Print the tables of all references and, where kernels can run, of both sets of kernels.

    The sizes are small in the simulator and those of GPT-2 on a GPU. Returns True if everything is correct.
    """
    print("backward of the NumPy references against central differences, float64")
    rows = [row for layer in LAYERS for row in check_reference(layer)]
    print(format_table(rows))
    if not gpu_available():
        print("\nno kernels were checked: there is no GPU, and NUMBA_ENABLE_CUDASIM=1 is not set")
        return all(row.ok for row in rows)
    rows += _check_set("plain", "fp32")
    if bfloat16_supported():
        for precision in STORAGE:
            rows += _check_set("fast", precision)
    else:
        print("\nthe fast kernels were not checked: they need a GPU of compute capability 8.0 or later")
    return all(row.ok for row in rows)


def _check_set(kernels, precision):
    """Check one set of kernels and print the table. Returns its Rows."""
    print(f"\n{kernels} kernels against the references, {precision}, {'in the simulator' if SIMULATING else 'on the GPU'}", flush=True)
    rows = []
    for layer in LAYERS:
        small = small_sizes(layer, precision, kernels)
        for sizes in small[:1] if SIMULATING else (*(small if kernels == "plain" else ()), *production_sizes(layer)):
            rows += check_kernel(layer, precision, sizes, kernels)
    if kernels == "fast" and precision == "fp32" and real_gpu():  # only attention has kernels of its own for TF32
        for sizes in production_sizes("attention"):
            rows += check_kernel("attention", "tf32", sizes)
    print(format_table(rows))
    return rows
