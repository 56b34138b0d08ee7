"""The other set of kernels, with which a layer is compared: functions of one signature, called with arrays on the host.

reference   NumPy, in float64
plain       the plain kernels, float32
fast        the fast kernels, in the run's precision
fp32        the fast kernels, in float32 without TF32
FILE.py     a reader's functions, float32; what it does not define is not compared
"""

import contextlib
from types import SimpleNamespace

import numpy as np
from numba import cuda

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_supported, copy_to_host, gpu_available, on_host, to_device
from gpt2_numba.gpu.gemm import allow_tf32, tf32_allowed
from gpt2_numba.kernel_sets import FUNCTIONS, load_own_functions, on_any_stream
from gpt2_numba.layers.fast import attention, classifier, encoder, gelu, layernorm, matmul, residual
from gpt2_numba.own_kernels import reporting_errors
from gpt2_numba.replaying.watching import WRITES

CHOICES = "reference, plain, fast, fp32 or FILE.py"
ALWAYS_FLOAT32 = ("mean", "rstd", "lse", "losses", "values")  # whatever the precision; `mean` is LayerNorm's, or that of the losses


class Side:
    """One side of a comparison: how far off its results may be depends on this.

    name      for tables        storage  type of its tensors; None: float64, without error
    tf32      whether its float32 products may be in TF32        fast  whether sums are divided over threads as by the fast kernels
    """

    def __init__(self, name, storage, tf32=False, fast=False):
        self.name, self.storage, self.tf32, self.fast = name, storage, tf32, fast

    @property
    def label(self):
        """What it is, for people: "fast, bfloat16"."""
        precision = "float64" if self.storage is None else "bfloat16" if self.storage == BFLOAT16_BITS else "float32"
        return f"{self.name}, {precision}{' with TF32' if self.tf32 and self.storage == FLOAT32 else ''}"

    @contextlib.contextmanager
    def arithmetic(self):
        """Inside the `with`, products and their bounds are in this side's precision."""
        before = tf32_allowed()
        allow_tf32(self.tf32)
        try:
            yield
        finally:
            allow_tf32(before)


def side_of(model):
    """The Side of a model in training."""
    options, on_cpu = model.options, on_host(model.raw("params"))
    storage = FLOAT32 if on_cpu else model.raw("params").dtype
    return Side(model.kernels.name, storage, tf32=options.tf32 and not on_cpu, fast=model.kernels.fused)


class OnHost(Side):
    """The references, in float64."""

    own = None

    def __init__(self):
        super().__init__("reference", None)

    def call(self, function, arguments):
        """Call a layer function. arguments: float64 or integer host arrays and scalars by name; those that it writes are changed."""
        FUNCTIONS[function](**arguments)


class OnDevice(Side):
    """Kernels, on copies of the arrays on the device. own: the functions that are compared; None: all."""

    def __init__(self, name, functions, own=None, **rest):
        """functions: name -> function with the signature of FUNCTIONS. rest: of Side."""
        super().__init__(name, **rest)
        self._functions, self.own = functions, own

    def call(self, function, arguments):
        """As OnHost.call. What a reader's file does not define, the references compute."""
        if function not in self._functions:
            return FUNCTIONS[function](**arguments)
        device = {name: self._to_device(name, value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
        with self.arithmetic():
            self._functions[function](*(device[name] for name in arguments))
        for name in WRITES[function]:
            if arguments.get(name) is not None:
                arguments[name][:] = copy_to_host(device[name])

    def _to_device(self, name, values):
        if values.dtype.kind != "f":
            return to_device(values)
        return to_device(values, FLOAT32 if name in ALWAYS_FLOAT32 else self.storage)


def open_other(text, model):
    """The other Side that --against names, for a model in training. Raises UserError if this machine or model has no such set."""
    if text == "reference":
        return OnHost()
    if text not in ("plain", "fast", "fp32") and not text.endswith(".py"):
        raise UserError(f"--against must be {CHOICES}, got {text!r}")
    if not gpu_available():
        raise UserError(
            f"--against {text} runs kernels, and this machine has no GPU: use --against reference, or set NUMBA_ENABLE_CUDASIM=1 in the "
            "environment for the simulator, if the model is tiny"
        )
    if text == "plain":
        return OnDevice("plain", FUNCTIONS, storage=FLOAT32)
    if text.endswith(".py"):
        own = {name: reporting_errors(name, on_any_stream(name, function)) for name, function in load_own_functions(text).items()}
        own = {name: function for name, function in own.items() if name in WRITES}
        if not own:
            raise UserError(f"--against {text} must define a function of a layer, and defines none that forward or backward calls")
        return OnDevice(text, own, own=own, storage=FLOAT32)
    if not bfloat16_supported():
        raise UserError(f"--against {text} runs the fast kernels, which need a GPU of compute capability 8.0 or later: use plain")
    mine = side_of(model)
    if text == "fp32":
        return OnDevice("fast", FAST, storage=FLOAT32, fast=True)
    return OnDevice("fast", FAST, storage=mine.storage, tf32=mine.tf32, fast=True)


# ------------------------------------------------------------------------- the fast kernels with the plain ones' parameters


def _scratch(count):
    return cuda.device_array(max(1, int(count)), np.float32)


def _attention_scratch(qkv, lse):
    B, NH, T = lse.shape
    return _scratch(attention.attention_scratch_size(B, T, NH, qkv.shape[1] // 3 // NH, qkv.dtype))


def attention_forward(out, lse, qkv):
    """The fast one."""
    attention.attention_forward(out, lse, qkv, _attention_scratch(qkv, lse))


def attention_backward(dqkv, dout, out, lse, qkv):
    """The fast one."""
    attention.attention_backward(dqkv, dout, out, lse, qkv, _attention_scratch(qkv, lse))


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """The fast one."""
    layernorm.layernorm_backward(
        dinp, dweight, dbias, dout, inp, weight, mean, rstd, _scratch(layernorm.layernorm_scratch_size(inp.shape[1]))
    )


def matmul_backward(dinp, dweight, dbias, dout, inp, weight):
    """The fast one."""
    scratch = None if dbias is None else _scratch(matmul.matmul_scratch_size(weight.shape[0]))
    matmul.matmul_backward(dinp, dweight, dbias, dout, inp, weight, scratch)


def gelu_backward(dinp, dout, inp):
    """The fast one."""
    gelu.gelu_backward(dinp, dout, inp)


def encoder_backward(dwte, dwpe, dout, tokens):
    """The fast one."""
    places, pieces = encoder.places_by_token(copy_to_host(tokens), dwte.shape[0])
    scratch = _scratch(encoder.encoder_scratch_size(*dout.shape))
    encoder.encoder_backward(dwte, dwpe, dout, to_device(places), to_device(pieces), scratch, tokens.shape[1])


def residual_backward(dinp, dbranch, dout):
    """The fast set has none, since it needs no copy: on the host."""
    values = copy_to_host(dout)
    for array in (dinp, dbranch):
        array.copy_to_device(to_device(values, dout.dtype))


FAST = {
    function.__name__: function
    for function in (
        encoder.encoder_forward, layernorm.layernorm_forward, matmul.matmul_forward, attention_forward, gelu.gelu_forward,
        residual.residual_forward, classifier.classifier_forward, classifier.classifier_forward_backward, classifier.accumulate_mean,
        matmul_backward, layernorm_backward, gelu_backward, attention_backward, encoder_backward, residual_backward,
    )
}  # fmt: skip


def as_namespace(arrays):
    """Arrays by name as attributes, None left out: how layer_checks' bounds take them."""
    return SimpleNamespace(**{name: array for name, array in arrays.items() if array is not None})
