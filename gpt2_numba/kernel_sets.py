"""Selects the functions that a model calls for its layers.

    reference   NumPy, on the CPU: layers/NAME.py, the functions that end in _ref
    plain       the kernels for reading: layers/NAME.py. float32, on every GPU that numba-cuda supports, and in the simulator
    fast        the kernels for training: layers/fast/NAME.py. Compute capability 8.0 and later; bfloat16; neighbouring layers fused
    your own    a file that defines any of FUNCTIONS; the plain ones fill in the rest

All but the fast ones share one signature for each layer function, and are called one layer at a time (layer_order.py). The fast ones have an order
of their own (fused_layer_order.py).
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

# The layer functions by name. Given NumPy arrays they run the reference, given device arrays the plain kernels.
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
    own: dict = field(default_factory=dict)  # name -> function, from a user's files: to be checked before use


def choose_kernels(text, device, precision="fp32"):
    """The KernelSet that `text` (--kernels) asks for.

    text       auto: fast where the GPU can, compute capability 8.0 and later and the simulator; else plain,cublaslt
               fast | plain
               plain,cublaslt      plain, with the matrix products by NVIDIA's library
               FILE.py             plain, with the functions that the file defines in their place; short for plain,FILE.py. Several
                                   may be listed: plain,cublaslt,a.py,b.py, and the last one that defines a function has it
    device     "cpu" or "gpu"      precision "fp32" or "bf16"
    Raises UserError where these do not go together, or a file cannot be used.
    """
    if device == "cpu":
        if text != "auto":
            raise UserError(
                f"--kernels {text} chooses kernels, and on the CPU there are none: add --device gpu"
                + ("" if SIMULATING else ", in the simulator if there is no GPU (NUMBA_ENABLE_CUDASIM=1 in the environment)")
            )
        return KernelSet("reference", "NumPy, on the CPU", functions=SimpleNamespace(**FUNCTIONS))
    if text in ("auto", "fast") and bfloat16_supported():
        return KernelSet("fast", "the simulator has what they need" if SIMULATING else "compute capability 8.0 or later", fused=True)
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
    """The KernelSet of a list such as plain,cublaslt,FILE.py; what comes later goes before what comes earlier."""
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
    functions |= {name: on_any_stream(function) for name, function in own.items()}
    return KernelSet(", ".join(["plain", *parts]), "asked for", functions=SimpleNamespace(**functions), own=own)


def load_own_functions(path):
    """The layer functions that a file defines: name -> function. Raises UserError if there are none, or one has other parameters."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--kernels {path}: there is no such file")
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
    """'line 3: ' if that line of the file raised the error; a SyntaxError says so itself."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"line {lines[-1]}: " if lines else ""


def on_any_stream(function):
    """Wrap a function so that it may launch on any stream: earlier layers have finished when it is called, and it has when it returns."""
    if SIMULATING:
        return function

    def between_other_work(*arguments):
        compute_stream().synchronize()
        function(*arguments)
        cuda.synchronize()

    return between_other_work
