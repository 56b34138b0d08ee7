"""Selects the functions that a model calls for its layers.

    reference   NumPy, on the CPU: layers/NAME.py, functions ending in _ref
    plain       kernels for reading: layers/NAME.py. float32, on every GPU that numba-cuda supports and in the simulator
    fast        kernels for training: layers/fast/NAME.py. Compute capability 8.0 and later; float32 or bfloat16; neighbouring layers fused
    your own    a file that defines any of FUNCTIONS; the plain ones supply the rest

All but the fast set share one signature for each layer function and are called one layer at a time (layer_order.py). The fast set has its
own order (fused_layer_order.py).
"""

import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from numba import cuda

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, compute_stream, device_name
from gpt2_numba.layers import adamw, attention, classifier, encoder, gelu, global_norm, layernorm, matmul, residual

# The layer functions by name: NumPy arrays run the reference, device arrays the plain kernels.
FUNCTIONS = {
    function.__name__: function
    for function in (
        encoder.encoder_forward, layernorm.layernorm_forward, matmul.matmul_forward, attention.attention_forward,
        residual.residual_forward, gelu.gelu_forward, classifier.classifier_forward, classifier.classifier_forward_backward,
        classifier.accumulate_mean, matmul.matmul_backward, layernorm.layernorm_backward, residual.residual_backward,
        gelu.gelu_backward, attention.attention_backward, encoder.encoder_backward, global_norm.sum_of_squares,
        global_norm.norm_and_scale, adamw.adamw_update,
    )
}  # fmt: skip
BY_LIBRARY = {"matmul_forward": matmul.matmul_forward_by_library, "matmul_backward": matmul.matmul_backward_by_library}
CHOICES = "auto, fast, plain, plain,cublaslt, FILE.py or plain,cublaslt,FILE.py"


@dataclass(frozen=True)
class KernelSet:
    """The functions that a model calls."""

    name: str  # for display: "fast", "plain, cublaslt", "plain, mine.py"
    reason: str = ""  # why it was chosen
    fused: bool = False  # the fast kernels, in fused_layer_order.py
    functions: SimpleNamespace | None = None  # FUNCTIONS by name, for layer_order.py; None if fused
    own: dict = field(default_factory=dict)  # name -> function from a user's files, checked before use


def choose_kernels(text, device, precision="fp32"):
    """Return the KernelSet that `text` (--kernels) selects.

    text       auto: fast on compute capability 8.0 and later and in the simulator; otherwise plain,cublaslt
               fast | plain
               plain,cublaslt      plain, with matrix products by NVIDIA's library
               FILE.py             plain, with the file's functions in place of its own; short for plain,FILE.py. Several may be listed,
                                   as in plain,cublaslt,a.py,b.py: the last one that defines a function wins
    device     "cpu" or "gpu"      precision "fp32" or "bf16"
    Raises UserError if these do not go together, or a file cannot be used.
    """
    if device == "cpu":
        if text != "auto":
            raise UserError(
                f"--kernels {text} selects kernels, and the CPU runs none: add --device gpu"
                + ("" if SIMULATING else ", in the simulator if there is no GPU (NUMBA_ENABLE_CUDASIM=1 in the environment)")
            )
        return KernelSet("reference", "NumPy, on the CPU", functions=SimpleNamespace(**FUNCTIONS))
    if text in ("auto", "fast") and bfloat16_supported():
        return KernelSet("fast", "the simulator has all they need" if SIMULATING else "compute capability 8.0 or later", fused=True)
    if text == "fast":
        raise UserError(f"--kernels fast needs a GPU of compute capability 8.0 or later, and {device_name()} has less: use --kernels auto")
    if precision != "fp32":
        what = (
            f"bf16 needs a GPU of compute capability 8.0 or later, and {device_name()} has less"
            if text == "auto"
            else f"--kernels {text} is float32 only"
        )
        raise UserError(f"{what}: use --precision fp32")
    if text == "auto":
        reason = f"the fast ones need compute capability 8.0, and {device_name()} has less"
        return KernelSet("plain, cublaslt", reason, functions=SimpleNamespace(**FUNCTIONS | BY_LIBRARY))
    return _listed_kernels(text)


def _listed_kernels(text):
    """The KernelSet of a list such as plain,cublaslt,FILE.py; later items override earlier ones."""
    parts = [part.strip() for part in text.split(",")]
    if parts[0] == "plain":
        parts = parts[1:]
    functions, own = dict(FUNCTIONS), {}
    for part in parts:
        if part == "cublaslt" and not own:
            functions |= BY_LIBRARY
        elif part.endswith(".py"):
            own |= load_own_functions(part)
        else:
            raise UserError(f"--kernels must be {CHOICES}, got {text!r}")
    functions |= {name: on_any_stream(name, function) for name, function in own.items()}
    return KernelSet(", ".join(["plain", *parts]), "selected", functions=SimpleNamespace(**functions), own=own)


def load_own_functions(path):
    """The layer functions that a file defines: name -> function. Raises UserError if there are none, or one has the wrong parameters."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--kernels {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--kernels {path} cannot be imported: {_where(error, path)}{type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    own = {name: vars(module)[name] for name in FUNCTIONS if name in vars(module) and vars(module)[name] is not FUNCTIONS[name]}
    if not own:
        raise UserError(f"--kernels {path} defines none of the layer functions: {', '.join(FUNCTIONS)}")
    for name, function in own.items():
        expected = inspect.signature(FUNCTIONS[name])
        if not inspect.isfunction(function):
            got = (
                "a kernel, not a Python function that launches one"
                if hasattr(function, "py_func") or hasattr(function, "fn")
                else repr(function)
            )
            raise UserError(f"--kernels {path}: {name} must be a function {name}{expected}, got {got}")
        try:
            inspect.signature(function).bind(*expected.parameters)
        except TypeError:
            raise UserError(f"--kernels {path}: {name} must take {expected}, got {inspect.signature(function)}") from None
    return own


def _where(error, path):
    """'line 3: ' if line 3 of the file raised the error, else ''; a SyntaxError names the line itself."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"line {lines[-1]}: " if lines else ""


def on_any_stream(name, function):
    """Wrap a user's function so that it may launch on any stream: all earlier work has finished when it starts, and its own when it returns.

    The model names the arguments; the function gets them in the order of FUNCTIONS[name], so that its parameters may have other names.
    """
    signature = inspect.signature(FUNCTIONS[name])

    def between_other_work(*arguments, **named):
        if not SIMULATING:
            compute_stream().synchronize()
        function(*signature.bind(*arguments, **named).args)
        if not SIMULATING:
            cuda.synchronize()

    return between_other_work
