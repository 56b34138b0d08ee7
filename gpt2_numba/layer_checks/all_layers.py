"""The two checks of a layer by its name, and both of every layer."""

from functools import partial

import numpy as np

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING, gpu_available, real_gpu
from gpt2_numba.gpu.gemm import allow_tf32, tf32_allowed
from gpt2_numba.layer_checks import adamw, attention, classifier, encoder, gelu, global_norm, layernorm, matmul, mean_loss, residual
from gpt2_numba.layer_checks.rows import format_table
from gpt2_numba.layer_checks.running import check_call
from gpt2_numba.layer_checks.sizes import REFERENCE_SIZES, production_sizes, small_sizes

# Name -> generators: rows of the reference's check (sizes, normal), calls of the kernels' (sizes, normal, storage).
_CHECKS = {
    "encoder": (encoder.reference_rows, encoder.kernel_calls),
    "layernorm": (layernorm.reference_rows, layernorm.kernel_calls),
    "matmul": (matmul.reference_rows, matmul.kernel_calls),
    "matmul without bias": (partial(matmul.reference_rows, has_bias=False), partial(matmul.kernel_calls, has_bias=False)),
    "attention": (attention.reference_rows, attention.kernel_calls),
    "gelu": (gelu.reference_rows, gelu.kernel_calls),
    "residual": (residual.reference_rows, residual.kernel_calls),
    "classifier": (classifier.reference_rows, classifier.kernel_calls),
    "mean loss": (mean_loss.reference_rows, mean_loss.kernel_calls),
    "adamw": (adamw.reference_rows, adamw.kernel_calls),
    "global norm": (global_norm.reference_rows, global_norm.kernel_calls),
}
LAYERS = tuple(_CHECKS)
STORAGE = {"fp32": FLOAT32, "bf16": BFLOAT16_BITS}


def check_reference(layer, sizes=REFERENCE_SIZES):
    """Check the NumPy reference of one of LAYERS. Returns a list of Rows."""
    normal = np.random.default_rng(137).standard_normal
    reference_rows, _ = _CHECKS[layer]
    return list(reference_rows(sizes, normal))


def kernel_calls(layer, sizes, storage):
    """The Calls that check_kernel makes, one after the other."""
    normal = np.random.default_rng(731).standard_normal
    _, calls = _CHECKS[layer]
    return calls(sizes, lambda *shape: normal(shape, np.float32), storage)


def check_kernel(layer, precision, sizes):
    """Check the kernels of one of LAYERS on the device: "fp32" (TF32 off), "tf32" (float32, TF32 allowed) or "bf16". Returns a list of Rows."""
    storage = FLOAT32 if precision == "tf32" else STORAGE[precision]
    tf32_was_allowed = tf32_allowed()
    allow_tf32(precision == "tf32")
    try:
        return [row for call in kernel_calls(layer, sizes, storage) for row in (call.check or check_call)(call, storage)]
    finally:
        allow_tf32(tf32_was_allowed)


def check_all_layers():
    """Print the table of all references and, where kernels can run, of all kernels: small ones in the simulator, on a GPU production sizes.

    Returns True if everything is right.
    """
    print("backward of the NumPy references against central differences, float64")
    rows = [row for layer in LAYERS for row in check_reference(layer)]
    print(format_table(rows))
    if not gpu_available():
        print("\nno kernels were checked: there is no GPU, and NUMBA_ENABLE_CUDASIM=1 is not set")
        return all(row.ok for row in rows)
    for precision in STORAGE:
        print(f"\nkernels against the references, {precision}, {'in the simulator' if SIMULATING else 'on the GPU'}", flush=True)
        of_kernels = []
        for layer in LAYERS:
            for sizes in small_sizes(layer, precision)[:1] if SIMULATING else production_sizes(layer):
                of_kernels += check_kernel(layer, precision, sizes)
        if precision == "fp32" and real_gpu():  # the one layer that has kernels of its own for TF32; cuBLASLt's are the library's business
            for sizes in production_sizes("attention"):
                of_kernels += check_kernel("attention", "tf32", sizes)
        print(format_table(of_kernels))
        rows += of_kernels
    return all(row.ok for row in rows)
