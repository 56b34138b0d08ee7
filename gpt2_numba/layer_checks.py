"""Is every layer right? Two checks of each, used by the tests and by `python -m gpt2_numba.doctor --check`.

    check_reference(layer)                   the NumPy reference's backward against central differences of its forward, in float64
    check_kernel(layer, precision, sizes)    the kernels against the reference, on the very same numbers

Both return rows: layer, tensor, largest error, bound. `format_table` prints them; a row that is not ok says, as text, where it went
wrong and with which values.

A kernel check does more than compare. Outputs hold NaN before the call, accumulators numbers other than zero. Every array lies between
guard cells, which must not change and hold NaN, so that whoever reads past an end is found out. Arrays that are only read must not
change. The call is made twice, and must give the same bits.

Tolerances are not chosen but derived, below, from the type, the length of the sum and the size of what is added up.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Callable

import numpy as np
from numba import cuda

from gpt2_numba.gpu import gemm
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    SIMULATING,
    bfloat16_bits,
    bfloat16_values,
    compute_stream,
    gpu_available,
    synchronize,
)
from gpt2_numba.gpu.stochastic_rounding import squirrel_noise
from gpt2_numba.layers import classifier, global_norm
from gpt2_numba.layers.adamw import adamw_update
from gpt2_numba.layers.attention import attention_backward, attention_forward, padded_keys
from gpt2_numba.layers.classifier import accumulate_mean, classifier_forward, classifier_forward_backward
from gpt2_numba.layers.encoder import encoder_backward, encoder_forward, places_by_token
from gpt2_numba.layers.gelu import gelu_backward, gelu_forward
from gpt2_numba.layers.global_norm import sum_of_squares
from gpt2_numba.layers.layernorm import layernorm_backward, layernorm_forward, layernorm_scratch_size
from gpt2_numba.layers.matmul import matmul_backward, matmul_forward, matmul_scratch_size
from gpt2_numba.layers.residual import residual_backward, residual_forward

STORAGE = {"fp32": FLOAT32, "bf16": BFLOAT16_BITS}


@dataclass(frozen=True)
class Sizes:
    """B batch, T tokens, C channels, NH heads, V vocabulary, Vp padded vocabulary, OC output channels of the matmul."""

    B: int
    T: int
    C: int
    NH: int
    V: int
    Vp: int
    OC: int

    @property
    def N(self):
        return self.B * self.T

    @property
    def HS(self):
        return self.C // self.NH

    def __str__(self):
        return f"B{self.B}-T{self.T}-C{self.C}-NH{self.NH}-V{self.V}-Vp{self.Vp}-OC{self.OC}"


# Distinct and awkward. On the device channels come in eights; on the host they need not.
REFERENCE_SIZES = Sizes(B=2, T=5, C=21, NH=3, V=37, Vp=40, OC=13)
AWKWARD = Sizes(B=2, T=5, C=48, NH=3, V=101, Vp=128, OC=56)
# Just over what one warp or block takes at a time, so that the loops in the kernels go round a second time:
WIDE = Sizes(B=1, T=3, C=264, NH=3, V=1021, Vp=1024, OC=264)  # 256 columns to a warp; 512 logits to a block of the simulator
LONG = Sizes(B=1, T=261, C=8, NH=1, V=37, Vp=64, OC=8)  # 256 rows in chunks of two, a row for each of the simulator's warps
PRODUCTION_SIZES = (
    Sizes(B=4, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=3072),  # GPT-2 124M
    Sizes(B=1, T=1023, C=768, NH=12, V=257, Vp=384, OC=2304),  # rows of attention weights that end in padding; bytes as tokens
    Sizes(B=3, T=77, C=1600, NH=25, V=5003, Vp=5120, OC=4800),  # GPT-2 1558M's channels
)


def small_sizes(layer, precision):
    """Sizes that the simulator does in seconds. Whether loops go round again does not depend on the type: WIDE and LONG in fp32 only."""
    by_layer = {
        "matmul": (AWKWARD, Sizes(B=1, T=3, C=8, NH=1, V=37, Vp=64, OC=264), LONG),
        "matmul without bias": (Sizes(B=2, T=5, C=40, NH=5, V=67, Vp=72, OC=72),),
        "attention": (AWKWARD,),  # a LONG one takes the simulator's matrix products minutes: the tests lend it NumPy's
        "classifier": (AWKWARD, WIDE),
        "adamw": (AWKWARD,),
    }
    all_sizes = by_layer.get(layer, (AWKWARD, WIDE, LONG))
    return all_sizes if precision == "fp32" else all_sizes[:1]


def production_sizes(layer):
    """Sizes for a real GPU. The references take most of the time: where an array is quadratic in T or has a row of Vp, fewer rows do."""
    batch = {"attention": 2, "classifier": 1, "matmul without bias": 1}.get(layer)
    first = PRODUCTION_SIZES[0] if batch is None else replace(PRODUCTION_SIZES[0], B=batch)
    return first, *PRODUCTION_SIZES[1:]


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Row:
    """One tensor's verdict. error, bound, got, expected are those of its worst element: where error / bound is largest."""

    layer: str
    tensor: str
    shape: tuple
    error: float
    bound: float
    index: tuple
    got: float
    expected: float
    problem: str = ""  # other than a wrong value, such as an overwritten guard cell

    @property
    def ok(self):
        return not self.problem and self.error <= self.bound

    def __str__(self):
        if self.problem:
            return f"{self.layer}: {self.tensor} {self.shape}: {self.problem}"
        return (
            f"{self.layer}: {self.tensor} {self.shape} at {self.index}: got {self.got:.9g}, expected {self.expected:.9g}, "
            f"error {self.error:.3g}, bound {self.bound:.3g}"
        )


def format_table(rows):
    """The rows as a table: layer, tensor, largest error (relative to its bound), bound, verdict; what failed is told below it."""
    width = max([30, *(len(row.layer) for row in rows)])
    lines = [f"{'layer':<{width}}  {'tensor':<12}{'largest error':>14}{'bound':>12}"]
    for row in rows:
        lines.append(f"{row.layer:<{width}}  {row.tensor:<12}{row.error:14.2e}{row.bound:12.2e}  {'ok' if row.ok else 'FAILED'}")
    return "\n".join([*lines, *(f"FAILED {row}" for row in rows if not row.ok)])


def compare(layer, tensor, got, expected, error_bound, storage=None):
    """The Row of a tensor.

    got          what came: floats, or the bits of bfloat16 as uint16
    expected     what should have come, same shape
    error_bound  bound of the arithmetic's error, broadcastable to the shape. 0 where there is no arithmetic: bits must agree
    storage      the type it was rounded to at the end, which adds half a unit in the last place where there is arithmetic
    """
    shape = expected.shape
    as_rows = (math.prod(shape[:-1]), shape[-1])
    bounds = np.broadcast_to(error_bound, shape)
    got, expected, bounds = got.reshape(as_rows), expected.reshape(as_rows), bounds.reshape(as_rows)
    step = max(1, (1 << 18) // as_rows[1])

    def worst_of(start):
        rows = slice(start, start + step)
        came = _as_float(got[rows])
        error = np.abs(came - expected[rows])
        error[~np.isfinite(error)] = np.inf
        bound = bounds[rows]
        if storage is not None:
            bound = np.where(bound > 0, bound + half_ulp(np.abs(expected[rows]) + bound, storage), 0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share = np.where(error == 0, 0, error / bound)
        at = np.unravel_index(np.argmax(share), share.shape)
        return share[at], error[at], bound[at], (start + int(at[0])) * as_rows[1] + int(at[1]), came[at], expected[rows][at]

    with ThreadPoolExecutor() as pool:  # NumPy lets other threads run while it computes
        worst = max(pool.map(worst_of, range(0, as_rows[0], step)), key=lambda one: one[0])
    _, error, bound, flat_index, got, expected = worst
    index = tuple(int(i) for i in np.unravel_index(flat_index, shape))
    return Row(layer, tensor, shape, float(error), float(bound), index, float(got), float(expected))


# ------------------------------------------------------------------------------------------------------- tolerances

UNIT = 2.0**-24  # largest relative error of one rounding to float32
SMALLEST = 2.0**-126  # smallest normal float32; below it exp may give 0
ROOT_OF_SMALLEST = 2.0**-63  # what is below it has no square in float32, in which the bounds are computed
SPREAD = 6.0


def half_ulp(values, storage):
    """Half the distance between neighbours of the storage type at `values`: what rounding to the nearest can change.

    A float32 between 2^e and 2^(e+1) is a multiple of 2^(e-23), a bfloat16 one of 2^(e-7).
    """
    powers = (np.abs(values).astype(np.float32).view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    return powers * np.float32(2.0**-8 if storage == BFLOAT16_BITS else 2.0**-24)


def summation_error(additions, largest_partial_sum):
    """Bound for float32 sums: SPREAD * sqrt(additions) * 2^-24 * largest_partial_sum.

    Every addition rounds, by at most 2^-24 of the partial sum at that point. The roundings are as good as independent, so together
    they grow like the square root of their number (Higham, Mary 2019, "A new approach to probabilistic rounding error analysis").
    `additions` is the longest chain that one number passes through. The largest partial sum is the total if all terms have one
    sign, and about the root of the sum of squares for terms of random sign, as here. An error is spread evenly over its bound, so its
    standard deviation is 0.58 bounds: a SPREAD of 6 is 10 standard deviations, for hundreds of millions of elements, and for partial
    sums that stray.
    """
    return SPREAD * math.sqrt(additions) * UNIT * largest_partial_sum


def product_error(K, root_sum_squares, storage):
    """Bound for one element of a matrix product, a sum of K products whose squares sum to root_sum_squares².

    A tensor core (bfloat16) adds 16 products in one step and cuts off what does not fit instead of rounding it: at most 2^-23, always
    in one direction, so these errors add up linearly (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores").
    """
    error = summation_error(K + 1, root_sum_squares)
    if storage == BFLOAT16_BITS:
        error = error + K / 16 * 2 * UNIT * root_sum_squares
    return error


def typical_product(a, b, K):
    """||a|| ||b|| / sqrt(K): the root of the sum of K squared products of unrelated factors, from the lengths of the two vectors."""
    return a * b / np.float32(math.sqrt(K))


def difference_error(objective_size, gradient_size):
    """Bound for a central difference, in float64: rounding of the objective, divided by the step, and the step's square.

    The objective is a sum of numbers that add up to objective_size in magnitude: its error is some 2^-53 of that. The third
    derivative is taken to be at most 32 times the largest gradient: the functions here are smooth on the scale of 1.
    """
    return 4 * 2.0**-53 * objective_size / STEP + 32 * STEP**2 * gradient_size


# -------------------------------------------------------------------------------------- references against differences

STEP = 2.0**-16  # central differences: the errors of step and of rounding are about equally small, some 1e-9


def central_differences(objective, array):
    """d objective() / d array, element by element. The array is changed in place and restored."""
    gradient, flat = np.empty(array.size), array.reshape(-1)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + STEP
        above = objective()
        flat[i] = kept - STEP
        gradient[i] = (above - objective()) / (2 * STEP)
        flat[i] = kept
    return gradient.reshape(array.shape)


def _check_gradients(layer, forward, out, dout, gradients, extra=0.0):
    """Rows for `gradients`: name -> (input array, accumulator's values before backward (0 if overwritten), values after).

    forward() fills `out` from the input arrays; the objective is Σ out * dout. extra: a relative error that is no fault.
    """

    def objective():
        forward()
        return float(np.vdot(out, dout))

    forward()
    size = float(np.abs(out * dout).sum())
    for name, (array, before, after) in gradients.items():
        expected = before + central_differences(objective, array)
        largest = np.abs(expected - before).max()
        yield compare(layer, name, after, expected, difference_error(size, largest) + extra * largest)


def check_reference(layer, sizes=REFERENCE_SIZES):
    """Check the NumPy reference of one of LAYERS. Returns a list of Rows."""
    normal = np.random.default_rng(137).standard_normal
    return list(_REFERENCE_CHECKS[layer](sizes, normal))


def _encoder_reference(s, normal):
    tokens = _tokens(s)
    wte, wpe, dout = normal((s.Vp, s.C)), normal((s.T + 2, s.C)), normal((s.N, s.C))
    out, dwte, dwpe = np.full(dout.shape, np.nan), normal(wte.shape), normal(wpe.shape)
    before = dwte.copy(), dwpe.copy()
    encoder_backward(dwte, dwpe, dout, *places_by_token(tokens, s.V), s.T)
    gradients = {"dwte": (wte, before[0], dwte), "dwpe": (wpe, before[1], dwpe)}
    yield from _check_gradients("encoder", lambda: encoder_forward(out, tokens, wte, wpe), out, dout, gradients)


def _layernorm_reference(s, normal):
    inp, weight, bias, dout = normal((s.N, s.C)), normal(s.C), normal(s.C), normal((s.N, s.C))
    out, mean, rstd = np.full(inp.shape, np.nan), np.full(s.N, np.nan), np.full(s.N, np.nan)

    def forward():
        layernorm_forward(out, mean, rstd, inp, weight, bias)

    forward()
    dinp, dweight, dbias = normal(inp.shape), normal(s.C), normal(s.C)
    before = dinp.copy(), dweight.copy(), dbias.copy()
    layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, None)
    gradients = {"dinp": (inp, before[0], dinp), "dweight": (weight, before[1], dweight), "dbias": (bias, before[2], dbias)}
    yield from _check_gradients("layernorm", forward, out, dout, gradients)


def _matmul_reference(s, normal, has_bias=True):
    inp, weight, bias, dout = normal((s.N, s.C)), normal((s.OC, s.C)), normal(s.OC), normal((s.N, s.OC))
    bias = bias if has_bias else None
    out, dinp, dweight = np.full(dout.shape, np.nan), np.full(inp.shape, np.nan), normal(weight.shape)
    dbias = normal(s.OC) if has_bias else None
    before = dweight.copy(), dbias if dbias is None else dbias.copy()
    matmul_backward(dinp, dweight, dbias, dout, inp, weight, None)
    gradients = {"dinp": (inp, 0, dinp), "dweight": (weight, before[0], dweight)}
    if has_bias:
        gradients["dbias"] = (bias, before[1], dbias)
    name = "matmul" if has_bias else "matmul without bias"
    yield from _check_gradients(name, lambda: matmul_forward(out, inp, weight, bias), out, dout, gradients)


def _attention_reference(s, normal):
    qkv, dout = normal((s.N, 3 * s.C)), normal((s.N, s.C))
    per_head, weights = (s.B, s.NH, s.T, s.HS), (s.B, s.NH, s.T, padded_keys(s.T))
    out, heads, att, out_heads = (np.full(shape, np.nan) for shape in (dout.shape, (3, *per_head), weights, per_head))

    def forward():
        attention_forward(out, heads, att, out_heads, qkv)

    forward()
    dqkv, dheads, datt = (np.full(array.shape, np.nan) for array in (qkv, heads, att))
    attention_backward(dqkv, dheads, datt, out_heads, dout, heads, att)
    yield from _check_gradients("attention", forward, out, dout, {"dqkv": (qkv, 0, dqkv)})


def _gelu_reference(s, normal):
    inp, dout = 2 * normal((s.N, 4 * s.C)), normal((s.N, 4 * s.C))
    out, dinp = np.full(inp.shape, np.nan), np.full(inp.shape, np.nan)
    gelu_backward(dinp, dout, inp)
    # The constants are float32: 3 * 0.044715 in backward is not three times the rounded 0.044715 of forward.
    yield from _check_gradients("gelu", lambda: gelu_forward(out, inp), out, dout, {"dinp": (inp, 0, dinp)}, extra=2 * UNIT)


def _residual_reference(s, normal):
    inp, branch, dout = normal((s.N, s.C)), normal((s.N, s.C)), normal((s.N, s.C))
    out, dinp, dbranch = np.full(inp.shape, np.nan), normal(inp.shape), normal(inp.shape)
    before = dinp.copy(), dbranch.copy()
    residual_backward(dinp, dbranch, dout)
    gradients = {"dinp": (inp, before[0], dinp), "dbranch": (branch, before[1], dbranch)}
    yield from _check_gradients("residual", lambda: residual_forward(out, inp, branch), out, dout, gradients)


def _classifier_reference(s, normal):
    logits, targets, dloss = 3 * normal((s.N, s.Vp)), _tokens(s).reshape(-1), 0.37
    losses, losses_of_backward, dlogits = np.full(s.N, np.nan), np.full(s.N, np.nan), logits.copy()
    classifier_forward_backward(losses_of_backward, dlogits, targets, dloss, s.V)

    def forward():
        classifier_forward(losses, logits, targets, s.V)

    forward()
    expected = np.array([math.log(sum(math.exp(x) for x in row[: s.V])) - row[t] for row, t in zip(logits, targets)])
    rounding = 8 * 2.0**-53 * np.abs(logits).max()  # of a handful of operations on numbers of this size, in float64
    yield compare("classifier", "losses", losses, expected, rounding)
    yield compare("classifier", "losses again", losses_of_backward, expected, rounding)
    yield from _check_gradients("classifier", forward, losses, np.full(s.N, dloss), {"dlogits": (logits, 0, dlogits)})


def _mean_loss_reference(s, normal):
    values, mean = np.abs(normal(s.N)), np.ones(1)
    accumulate_mean(mean, values)
    expected = np.array([1 + math.fsum(values) / s.N])
    yield compare("mean loss", "mean", mean, expected, 4 * 2.0**-53 * expected)


def textbook_adamw(params, grads, m, v, learning_rate, beta1, beta2, eps, weight_decay, grad_scale, t):
    """Algorithm 2 of Loshchilov, Hutter 2017, one parameter at a time, in Python's floats. Returns lists params, m, v."""
    new_params, new_m, new_v = [], [], []
    for theta, g, mean, square in zip(params, grads, m, v):
        g *= grad_scale
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        step = (mean / (1 - beta1**t)) / (math.sqrt(square / (1 - beta2**t)) + eps)
        new_params.append(theta - learning_rate * step - learning_rate * weight_decay * theta)
        new_m.append(mean)
        new_v.append(square)
    return new_params, new_m, new_v


def _adamw_reference(s, normal):
    count = s.N * s.C
    params, m, v = normal(count), np.zeros(count), np.zeros(count)
    for t in (1, 2, 3):
        grads = normal(count)
        settings = dict(learning_rate=0.1, beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.2, grad_scale=0.7, t=t)
        expected = textbook_adamw(*(array.tolist() for array in (params, grads, m, v)), **settings)
        adamw_update(params, grads, m, v, None, **settings)
        for name, came, right in zip(("params", "m", "v"), (params, m, v), expected):
            # A dozen roundings of numbers no larger than a few units.
            yield compare(f"adamw, step {t}", name, came, np.array(right), 16 * 2.0**-53 * 4)


def _global_norm_reference(s, normal):
    grads, sum_squares = normal(s.N * s.C), np.full(1, np.nan)
    sum_of_squares(sum_squares, grads, None)
    expected = np.array([math.fsum(g * g for g in grads)])
    yield compare("global norm", "sum_squares", sum_squares, expected, math.sqrt(grads.size) * 2.0**-53 * expected)


_REFERENCE_CHECKS = {
    "encoder": _encoder_reference,
    "layernorm": _layernorm_reference,
    "matmul": _matmul_reference,
    "matmul without bias": lambda s, normal: _matmul_reference(s, normal, has_bias=False),
    "attention": _attention_reference,
    "gelu": _gelu_reference,
    "residual": _residual_reference,
    "classifier": _classifier_reference,
    "mean loss": _mean_loss_reference,
    "adamw": _adamw_reference,
    "global norm": _global_norm_reference,
}
LAYERS = tuple(_REFERENCE_CHECKS)


# ------------------------------------------------------------------------------------------ kernels against references

GUARD = 128  # cells on either side of every device array: 256 bytes at least, so that arrays are aligned as cudaMalloc's are


@dataclass(frozen=True)
class Tensor:
    """An argument of a layer function: its shape, what it holds before the call, and whether it is compared afterwards."""

    shape: tuple
    kind: str = "real"  # "real": the precision's storage type; "f32"; "i32"
    values: np.ndarray | None = None  # None: NaN
    access: str = "w"  # "r" must not change; "w" compared with the reference, whatever it held; "scratch" neither

    def dtype(self, storage):
        return {"real": storage, "f32": FLOAT32, "i32": np.dtype(np.int32)}[self.kind]


def _read(values, kind="real"):
    return Tensor(values.shape, kind, values, "r")


def _written(*shape, kind="real"):
    return Tensor(shape, kind)


def _changed(values, kind="real"):
    """Accumulated into, or computed in place."""
    return Tensor(values.shape, kind, values)


def _scratch(*shape, kind="real"):
    return Tensor(shape, kind, None, "scratch")


@dataclass(frozen=True)
class Call:
    """One call of a layer function, which can be made on the host and on the device."""

    name: str
    tensors: dict  # name -> Tensor
    launch: Callable  # of a namespace of arrays
    errors: Callable = lambda after, before, storage: {}  # -> name -> bound of the arithmetic's error; see `compare`. Missing: 0
    reference: Callable | None = None  # where the host takes other arguments than the device
    check: Callable | None = None  # of (call, storage), where `check_call` will not do


def _as_stored(values, dtype):
    """Host values in a device array's type: bfloat16 as bits."""
    return bfloat16_bits(values) if dtype == BFLOAT16_BITS else np.ascontiguousarray(values, dtype)


def _as_float(stored):
    return bfloat16_values(stored) if stored.dtype == BFLOAT16_BITS else stored


class GuardedArray:
    """A device array between guard cells."""

    def __init__(self, tensor, storage):
        self.tensor, self.size = tensor, math.prod(tensor.shape)
        dtype = tensor.dtype(storage)
        fill = 0 if tensor.kind == "i32" else bfloat16_bits(np.nan) if dtype == BFLOAT16_BITS else np.nan
        self.before = np.full(self.size + 2 * GUARD, fill, dtype)
        if tensor.values is not None:
            self.before[GUARD:-GUARD] = _as_stored(tensor.values, dtype).reshape(-1)
        self.memory = cuda.device_array(self.before.shape, dtype)
        self.array = self.memory[GUARD : GUARD + self.size].reshape(tensor.shape)
        self.fill()

    def fill(self):
        """Put everything as it was before the call."""
        self.memory.copy_to_device(self.before, stream=compute_stream())

    def fetch(self):
        """All cells, guards included, as stored."""
        stored = self.memory.copy_to_host(stream=compute_stream())
        synchronize()
        return stored

    def problem(self, stored):
        """What has been changed that must not be, or ""."""
        untouched = np.ones(stored.size, bool)
        untouched[GUARD:-GUARD] = self.tensor.access == "r"
        bits = np.uint16 if stored.dtype.itemsize == 2 else np.uint32
        differs = np.flatnonzero((stored.view(bits) != self.before.view(bits)) & untouched)
        if not differs.size:
            return ""
        place, value = int(differs[0]) - GUARD, _as_float(stored[differs[:1]])[0]
        if not 0 <= place < self.size:
            return f"guard cell at {place} of {self.size} elements has been overwritten with {value:.9g}"
        index = tuple(int(i) for i in np.unravel_index(place, self.tensor.shape))
        return f"is only read, but at {index} has been overwritten with {value:.9g}"


def run_on_device(call, storage):
    """Make a call on the device, twice. Returns name -> values as stored (of what is compared), and Rows for what went wrong."""
    arrays = {name: GuardedArray(tensor, storage) for name, tensor in call.tensors.items()}
    views = SimpleNamespace(**{name: guarded.array for name, guarded in arrays.items()})
    call.launch(views)
    results, rows = {}, []

    def report(name, problem):
        rows.append(Row(call.name, name, call.tensors[name].shape, math.inf, 0.0, (), math.nan, math.nan, problem))

    for name, guarded in arrays.items():
        stored = guarded.fetch()
        if problem := guarded.problem(stored):
            report(name, problem)
        if guarded.tensor.access == "w":
            results[name] = stored[GUARD:-GUARD].reshape(guarded.tensor.shape)
        if guarded.tensor.access != "r":
            guarded.fill()
    call.launch(views)
    for name, first in results.items():
        second = arrays[name].fetch()[GUARD:-GUARD].reshape(first.shape)
        bits = np.uint16 if first.dtype.itemsize == 2 else np.uint32
        differs = first.view(bits) != second.view(bits)
        if differs.any():
            index = tuple(int(i) for i in np.unravel_index(np.argmax(differs), first.shape))
            one, other = _as_float(first[index][None])[0], _as_float(second[index][None])[0]
            report(name, f"at {index} the first run gave {one:.9g}, the second {other:.9g}: bits must repeat")
    return results, rows


def run_on_host(call, storage):
    """Make a call with the reference, in float64, on the numbers that the device gets. Returns namespaces: after, before."""
    before, after = SimpleNamespace(), SimpleNamespace()
    for name, tensor in call.tensors.items():
        values = None
        if tensor.access != "scratch":
            values = np.full(tensor.shape, np.nan)
            if tensor.values is not None:
                values = _as_float(_as_stored(tensor.values, tensor.dtype(storage)))
                values = values if tensor.kind == "i32" else values.astype(np.float64)
        elif len(tensor.shape) > 1:  # an activation's shape; flat scratch is for kernels alone
            values = np.full(tensor.shape, np.nan)
        setattr(before, name, values)
        setattr(after, name, values.copy() if tensor.access == "w" else values)
    (call.reference or call.launch)(after)
    return after, before


def check_call(call, storage):
    """Device against reference: a list of Rows, one for each tensor that is compared, more if something else went wrong."""
    results, rows = run_on_device(call, storage)
    after, before = run_on_host(call, storage)
    errors = call.errors(after, before, storage)
    compared = []
    for name, came in results.items():
        expected, bound, dtype = getattr(after, name), errors.get(name, 0.0), call.tensors[name].dtype(storage)
        if name not in errors:  # a copy, or one addition, which IEEE 754 determines: float64, rounded once, has the same bits
            expected = _as_float(_as_stored(expected.astype(np.float32), dtype))
        compared.append(compare(call.name, name, came, expected, bound, dtype))
    return compared + rows


def check_kernel(layer, precision, sizes):
    """Check the kernels of one of LAYERS on the device, "fp32" (TF32 off) or "bf16". Returns a list of Rows."""
    storage = STORAGE[precision]
    tf32_was_allowed = gemm._tf32_allowed
    gemm.allow_tf32(False)
    try:
        return [row for call in kernel_calls(layer, sizes, storage) for row in (call.check or check_call)(call, storage)]
    finally:
        gemm.allow_tf32(tf32_was_allowed)


def kernel_calls(layer, sizes, storage):
    """The Calls that check_kernel makes, one after the other."""
    normal = np.random.default_rng(731).standard_normal
    return _KERNEL_CALLS[layer](sizes, lambda *shape: normal(shape, np.float32), storage)


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
        print(format_table(of_kernels))
        rows += of_kernels
    return all(row.ok for row in rows)


def _tokens(s):
    """(B, T) int32: one token in three is the same, and the first and last of the vocabulary occur."""
    random = np.random.default_rng(317)
    tokens = np.where(random.random((s.B, s.T)) < 0.3, 7, random.integers(0, s.V, (s.B, s.T))).astype(np.int32)
    tokens[0, 0], tokens[-1, -1] = s.V - 1, 0
    return tokens


def _encoder_calls(s, normal, storage):
    tokens = _tokens(s)
    max_T = s.T + 3
    yield Call(
        "encoder forward",
        dict(out=_written(s.N, s.C), tokens=_read(tokens, "i32"), wte=_read(normal(s.Vp, s.C)), wpe=_read(normal(max_T, s.C))),
        lambda a: encoder_forward(a.out, a.tokens, a.wte, a.wpe),
    )
    places, starts = places_by_token(tokens, s.V)

    def errors(after, before, storage):
        # By rows: how many terms, and the largest sum of their squares in any column, or somewhat more.
        counts = np.zeros((s.Vp, 1))
        counts[: s.V, 0] = np.diff(starts)
        terms = {"dwte": counts, "dwpe": np.where(np.arange(max_T) < s.T, s.B, 0)[:, None]}  # rows that get nothing: no error
        squares = {name: np.square(getattr(before, name)).max(axis=1, keepdims=True) for name in terms}
        encoder_backward(squares["dwte"], squares["dwpe"], np.square(after.dout).max(axis=1, keepdims=True), places, starts, s.T)
        return {name: np.where(n > 0, np.sqrt(n + 1) * summation_error(1, np.sqrt(squares[name])), 0) for name, n in terms.items()}

    yield Call(
        "encoder backward",
        dict(dwte=_changed(normal(s.Vp, s.C)), dwpe=_changed(normal(max_T, s.C)), dout=_read(normal(s.N, s.C)),
             places=_read(places, "i32"), starts=_read(starts, "i32")),
        lambda a: encoder_backward(a.dwte, a.dwpe, a.dout, a.places, a.starts, s.T),
        errors,
    )  # fmt: skip


def _layernorm_calls(s, normal, storage):
    inp = 0.5 + 2 * normal(s.N, s.C)
    weight, bias = 1 + 0.3 * normal(s.C), normal(s.C)

    def forward_errors(after, before, storage):
        # Σ (x - m)² is stationary in m, so the mean's error does not matter for rstd; the sum's does, halved by the square root.
        size = np.sqrt(np.square(after.inp).mean(axis=1))
        mean = summation_error(s.C, size)
        relative_rstd = summation_error(s.C, 1.0) + 4 * UNIT
        normed = np.abs(after.out - after.bias)  # |xhat * weight|
        out = mean[:, None] * after.rstd[:, None] * np.abs(after.weight) + normed * (relative_rstd + 4 * UNIT) + UNIT * np.abs(after.bias)
        return {"mean": mean, "rstd": after.rstd * relative_rstd, "out": out}

    yield Call(
        "layernorm forward",
        dict(out=_written(s.N, s.C), mean=_written(s.N, kind="f32"), rstd=_written(s.N, kind="f32"),
             inp=_read(inp), weight=_read(weight), bias=_read(bias)),
        lambda a: layernorm_forward(a.out, a.mean, a.rstd, a.inp, a.weight, a.bias),
        forward_errors,
    )  # fmt: skip

    mean, rstd = inp.mean(axis=1), 1 / inp.std(axis=1)
    accumulators = dict(dweight=_changed(normal(s.C)), dbias=_changed(normal(s.C)))
    read = dict(inp=_read(inp), weight=_read(weight), mean=_read(mean, "f32"), rstd=_read(rstd, "f32"),
                scratch=_scratch(layernorm_scratch_size(s.C), kind="f32"))  # fmt: skip

    def backward_errors(after, before, storage):
        rstd = after.rstd[:, None]
        xhat = (after.inp - after.mean[:, None]) * rstd
        dxhat = before.dout * after.weight
        mean_dxhat, mean_dxhat_xhat = (np.sqrt(np.square(terms).mean(axis=1, keepdims=True) / s.C) for terms in (dxhat, dxhat * xhat))
        chain = s.C / 32 + 8  # a lane's share, and what joins the lanes
        means = summation_error(chain, 1.0) * (mean_dxhat + np.abs(xhat) * mean_dxhat_xhat)
        few = 8 * UNIT  # the handful of operations on one element
        dinp = rstd * (means + few * (np.abs(dxhat) + mean_dxhat + np.abs(xhat) * mean_dxhat_xhat)) + few * np.abs(before.dinp)
        dweight = summation_error(s.N, np.sqrt(np.einsum("nc,nc->c", before.dout**2, xhat**2)) + np.abs(before.dweight))
        dbias = summation_error(s.N, np.sqrt(np.einsum("nc,nc->c", before.dout, before.dout)) + np.abs(before.dbias))
        return {"dinp": dinp, "dweight": dweight, "dbias": dbias}

    yield Call(
        "layernorm backward",
        dict(dinp=_changed(normal(s.N, s.C)), **accumulators, dout=_read(normal(s.N, s.C)), **read),
        lambda a: layernorm_backward(a.dinp, a.dweight, a.dbias, a.dout, a.inp, a.weight, a.mean, a.rstd, a.scratch),
        backward_errors,
    )


def _matmul_calls(s, normal, storage, has_bias=True):
    # Without a bias it is the classifier, from C channels to the padded vocabulary. Values as in a model: results of size 1.
    N, C, OC = s.N, s.C, s.OC if has_bias else s.Vp
    name = "matmul" if has_bias else "matmul without bias"
    inp, weight, dout = normal(N, C), normal(OC, C) / np.float32(math.sqrt(C)), normal(N, OC)
    bias = {"bias": _read(normal(OC))} if has_bias else {}

    def norms(matrix, axis):
        return np.sqrt(np.einsum("rc,rc->r" if axis == 1 else "rc,rc->c", matrix, matrix))

    def forward_errors(after, before, storage):
        typical = typical_product(norms(after.inp, 1)[:, None], norms(after.weight, 1).max(), C)
        return {"out": product_error(C, typical + (np.abs(after.bias).max() if has_bias else 0), storage)}

    yield Call(
        f"{name} forward",
        dict(out=_written(N, OC), inp=_read(inp), weight=_read(weight), **bias),
        lambda a: matmul_forward(a.out, a.inp, a.weight, a.bias if has_bias else None),
        forward_errors,
    )

    def backward_errors(after, before, storage):
        dinp = typical_product(norms(after.dout, 1)[:, None], norms(after.weight, 0).max(), OC)
        dweight = typical_product(norms(after.dout, 0)[:, None], norms(after.inp, 0).max(), N) + np.abs(before.dweight).max()
        dweight_error = product_error(N, dweight, storage)
        if storage == BFLOAT16_BITS and not SIMULATING:  # cuBLASLt rounds the product before it adds it: see gemm
            dweight_error = dweight_error + half_ulp(np.abs(after.dweight - before.dweight) + dweight_error, storage)
        errors = {"dinp": product_error(OC, dinp, storage), "dweight": dweight_error}
        if has_bias:
            errors["dbias"] = summation_error(N, norms(after.dout, 0) + np.abs(before.dbias))
        return errors

    of_bias = dict(dbias=_changed(normal(OC)), scratch=_scratch(matmul_scratch_size(OC), kind="f32")) if has_bias else {}
    yield Call(
        f"{name} backward",
        dict(dinp=_written(N, C), dweight=_changed(normal(OC, C)), dout=_read(dout), inp=_read(inp), weight=_read(weight), **of_bias),
        lambda a: matmul_backward(
            a.dinp, a.dweight, a.dbias if has_bias else None, a.dout, a.inp, a.weight, a.scratch if has_bias else None
        ),
        backward_errors,
    )


def attention_forward_errors(q, k, v, p, out, storage):
    """Bounds for one head's attention weights and output, with scores and weights stored in the precision's own type.

    q, k, v, out (T, HS), p (T, T): the reference's, float32. Returns bounds for p and out.
    A score that is off by d changes its weight p by p d, and the sum of the row, by which all are divided, by Σ p d. So

        |error of p| <= p (exp(d + Σ p d) - 1)      d: the product's error, and half a unit in the last place of the stored score

    Stored weights are rounded once more, by r. In the output Σ p v the errors p d + r of different keys are independent:
    SPREAD times the root of the sum of their squares, each times (|v| + |out|), since the division by the row's sum takes out |out|.
    """
    T, HS = q.shape
    scale = np.float32(1 / math.sqrt(HS))
    causal = np.tri(T, dtype=np.float32)
    scores = q @ k.T * scale
    d = product_error(HS, typical_product(_lengths(q)[:, None], _lengths(k) * scale, HS), storage) + half_ulp(scores, storage)
    # exp: two units of its own, and the rounding of score - largest; the sum: a lane's share, and what joins the lanes.
    d += UNIT * (4 + np.abs(scores - scores.max(axis=1, keepdims=True))) + summation_error(T / 32 + 10, 1.0)
    d *= causal
    of_p = p * np.expm1(d + (p * d).sum(axis=1, keepdims=True)) + SMALLEST * causal
    squares = np.square(p * np.expm1(d) + half_ulp(p, storage))
    of_out = SPREAD * np.sqrt(2 * (squares @ v**2 + squares.sum(axis=1, keepdims=True) * out**2))
    of_out += product_error(T, np.sqrt(p**2 @ v**2), storage) + ROOT_OF_SMALLEST
    return of_p, of_out


def attention_backward_errors(q, k, v, p, dout, storage):
    """Bounds for one head's dq, dk and dv, with datt and dscore stored in the precision's own type. Arguments as in forward.

    datt is off by d: the product's error, and half a unit in the last place. dscore = p (datt - Σ p datt) is off by p d by itself and by
    p e through the row's sum, with e = SPREAD sqrt(Σ p² d²); then it is rounded, by r. In the sums over keys (dq) and over queries (dk)
    the errors p d + r are independent, while e is common to a row: in dq it counts as e |Σ p k|, in dk it is independent again.
    """
    T, HS = q.shape
    datt = dout @ v.T * np.tri(T, dtype=np.float32)
    d = product_error(HS, typical_product(_lengths(dout)[:, None], _lengths(v), HS), storage) + half_ulp(datt, storage)
    total = (p * datt).sum(axis=1, keepdims=True)
    e = SPREAD * np.sqrt(np.square(p * d).sum(axis=1, keepdims=True))
    e += summation_error(T / 32 + 10, np.sqrt(np.square(p * datt).sum(axis=1, keepdims=True)))
    dscore = p * (datt - total)
    own = np.square(p * (d + 4 * UNIT * (np.abs(datt) + np.abs(total)))) + np.square(half_ulp(dscore, storage))
    squares, scale = np.square(dscore), 1 / math.sqrt(HS)

    dq = SPREAD * np.sqrt(own @ k**2) + e * np.abs(p @ k) + product_error(T, np.sqrt(squares @ k**2), storage)
    of_query = own + np.square(p * e)
    dk = SPREAD * np.sqrt(of_query.T @ q**2) + product_error(T, np.sqrt(squares.T @ q**2), storage)
    dv = product_error(T, np.sqrt((p**2).T @ dout**2), storage)
    return np.stack((dq * scale, dk * scale, dv)) + ROOT_OF_SMALLEST


def _lengths(rows):
    return np.sqrt(np.einsum("rc,rc->r", rows, rows))


def _heads_of(rows, B, NH):
    """(N, C) as (B * NH, T, HS)."""
    return rows.reshape(B, -1, NH, rows.shape[1] // NH).transpose(0, 2, 1, 3).reshape(B * NH, -1, rows.shape[1] // NH)


def _for_each_head(bounds_of_head, a, rows, s, storage):
    """Call bounds_of_head(q, k, v, p, rows of the head, storage) for all B * NH heads, in threads, with float32 arrays."""
    heads = a.heads.reshape(3, s.B * s.NH, s.T, s.HS)
    rows, p = _heads_of(rows, s.B, s.NH), a.att.reshape(s.B * s.NH, s.T, -1)

    def one(head):
        return bounds_of_head(*(x.astype(np.float32) for x in (*heads[:, head], p[head, :, : s.T], rows[head])), storage)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(s.B * s.NH)))


def _attention_calls(s, normal, storage):
    per_head, weights = (s.B, s.NH, s.T, s.HS), (s.B, s.NH, s.T, padded_keys(s.T))
    qkv = normal(s.N, 3 * s.C)
    qkv[-1, : s.C] *= 16  # the last token's queries are large: exp must not overflow, and most of its weights vanish

    def forward_errors(after, before, storage):
        of_p, of_out = zip(*_for_each_head(attention_forward_errors, after, after.out, s, storage))
        att = np.zeros(after.att.shape, np.float32)  # 0 for keys after the query, and for padding: zero, exactly
        att[..., : s.T] = np.reshape(of_p, (s.B, s.NH, s.T, s.T))
        return {"att": att, "out": np.reshape(of_out, per_head).transpose(0, 2, 1, 3).reshape(after.out.shape)}

    def backward_errors(after, before, storage):
        bounds = np.reshape(_for_each_head(attention_backward_errors, after, after.dout, s, storage), (s.B, s.NH, 3, s.T, s.HS))
        return {"dqkv": bounds.transpose(0, 3, 2, 1, 4).reshape(after.dqkv.shape)}

    forward = Call(
        "attention forward",
        dict(out=_written(s.N, s.C), heads=_written(3, *per_head), att=_written(*weights), out_heads=_scratch(*per_head), qkv=_read(qkv)),
        lambda a: attention_forward(a.out, a.heads, a.att, a.out_heads, a.qkv),
        forward_errors,
    )
    yield forward
    kept, _ = run_on_host(forward, storage)
    yield Call(
        "attention backward",
        dict(dqkv=_written(s.N, 3 * s.C), dheads=_scratch(3, *per_head), datt=_scratch(*weights), dout_heads=_scratch(*per_head),
             dout=_read(normal(s.N, s.C)), heads=_read(kept.heads), att=_read(kept.att)),
        lambda a: attention_backward(a.dqkv, a.dheads, a.datt, a.dout_heads, a.dout, a.heads, a.att),
        backward_errors,
    )  # fmt: skip


def _gelu_calls(s, normal, storage):
    inp, dout = 2 * normal(s.N, 4 * s.C), normal(s.N, 4 * s.C)

    # tanh is off by two units of its own and by what its argument's four roundings make of it (|u| / cosh² u < 0.45); 1 + tanh may
    # cancel, so the error counts relative to x, not to out. Doubled, for the rest of the formula.
    def forward_errors(after, before, storage):
        return {"out": 8 * UNIT * np.abs(after.inp)}

    def backward_errors(after, before, storage):
        slope = 0.8 * (1 + 0.1342 * after.inp**2)
        return {"dinp": 8 * UNIT * np.abs(dout_of(before)) * (1 + np.abs(after.inp) * slope)}

    def dout_of(before):
        return before.dout if hasattr(before, "dout") else before.dinp

    calls = (
        Call("gelu forward", dict(out=_written(*inp.shape), inp=_read(inp)), lambda a: gelu_forward(a.out, a.inp), forward_errors),
        Call(
            "gelu backward",
            dict(dinp=_written(*inp.shape), dout=_read(dout), inp=_read(inp)),
            lambda a: gelu_backward(a.dinp, a.dout, a.inp),
            backward_errors,
        ),
        Call(
            "gelu backward in place",
            dict(dinp=_changed(dout), inp=_read(inp)),
            lambda a: gelu_backward(a.dinp, a.dinp, a.inp),
            backward_errors,
        ),
    )
    yield from calls


def _residual_calls(s, normal, storage):
    shape = (s.N, s.C)
    forward = Call(
        "residual forward",
        dict(out=_written(*shape), inp=_read(normal(*shape)), branch=_read(normal(*shape))),
        lambda a: residual_forward(a.out, a.inp, a.branch),
    )
    backward = Call(
        "residual backward",
        dict(dinp=_changed(normal(*shape)), dbranch=_changed(normal(*shape)), dout=_read(normal(*shape))),
        lambda a: residual_backward(a.dinp, a.dbranch, a.dout),
    )
    yield forward
    yield backward


def _classifier_calls(s, normal, storage):
    logits, targets = 3 * normal(s.N, s.Vp), _tokens(s).reshape(-1)
    logits[0] *= 16  # some beyond where exp overflows
    dloss = float(np.float32(0.37))

    def loss_errors(before):
        used = before.logits[:, : s.V]
        largest = used.max(axis=1)
        spread = largest - np.minimum(used.min(axis=1), largest)
        # Terms: exp of a rounded difference. Their sum: a thread's share of eight at a time, then what joins the threads.
        relative = UNIT * (4 + np.minimum(spread, 20)) + summation_error(s.V / classifier.THREADS + 18, 1.0)
        log_total = np.log(np.exp(used - largest[:, None]).sum(axis=1))
        at_target = used[np.arange(s.N), targets]
        return relative, relative + 4 * UNIT * (1 + log_total + np.abs(largest) + np.abs(at_target))

    def backward_errors(after, before, storage):
        relative, losses = loss_errors(before)
        used = before.logits[:, : s.V]
        gradients = np.abs(after.logits)
        gradients[np.arange(s.N), targets] += dloss  # p dloss cancels against dloss
        distance = np.zeros_like(gradients)
        distance[:, : s.V] = used.max(axis=1, keepdims=True) - used
        bound = gradients * (relative[:, None] + UNIT * (6 + distance)) + dloss * SMALLEST
        bound[:, s.V :] = 0  # of the padding: zero, exactly
        return {"losses": losses, "logits": bound}

    calls = (
        Call(
            "classifier forward",
            dict(losses=_written(s.N, kind="f32"), logits=_read(logits), targets=_read(targets, "i32")),
            lambda a: classifier_forward(a.losses, a.logits, a.targets, s.V),
            lambda after, before, storage: {"losses": loss_errors(before)[1]},
        ),
        Call(
            "classifier forward_backward",
            dict(losses=_written(s.N, kind="f32"), logits=_changed(logits), targets=_read(targets, "i32")),
            lambda a: classifier_forward_backward(a.losses, a.logits, a.targets, dloss, s.V),
            backward_errors,
        ),
    )
    yield from calls


def _mean_loss_calls(s, normal, storage):
    def errors(after, before, storage):
        chain = s.N / classifier.THREADS + 12
        return {"mean": summation_error(chain, after.values.mean()) + UNIT * before.mean}

    yield Call(
        "mean loss",
        dict(mean=_changed(np.ones(1, np.float32), "f32"), values=_read(np.abs(normal(s.N)), "f32")),
        lambda a: accumulate_mean(a.mean, a.values),
        errors,
    )


def _stochastically_rounded(values, first_index, seed):
    """Bits of bfloat16 that float32 `values` are rounded to, by the definition in gpu/stochastic_rounding.py."""
    index = np.arange(first_index, first_index + values.size, dtype=np.uint64)
    noise = squirrel_noise(index, np.uint64(seed)) & np.uint64(0xFFFF)
    return ((values.view(np.uint32) + noise) >> np.uint64(16)).astype(np.uint16)


def _adamw_calls(s, normal, storage):
    # A multiple of eight, but not of a block's share. Betas that float32 holds exactly: then 1 - beta is exact, too.
    count = s.C * s.C + 8
    constants = dict(beta1=float(np.float32(0.9)), beta2=float(np.float32(0.95)), eps=1e-3, weight_decay=0.2, grad_scale=0.37)
    noise = dict(first_index=1000, seed=5)
    params, grads = normal(count), normal(count)

    def call(name, t, m, v, has_master=False, check=None):
        settings = dict(learning_rate=2.0**-6, **constants, t=t)
        tensors = dict(params=_changed(params), grads=_read(grads), m=_changed(m, "f32"), v=_changed(v, "f32"))
        if has_master:
            tensors["master"] = _changed(params, "f32")

        def launch(a):
            adamw_update(a.params, a.grads, a.m, a.v, a.master if has_master else None, **settings, **noise)

        def reference(a):
            adamw_update(a.master if has_master else a.params, a.grads, a.m, a.v, None, **settings)

        def errors(after, before, storage):
            # A handful of roundings each; m may cancel, so they count relative to what is added.
            few = 8 * UNIT
            g = np.abs(before.grads) * constants["grad_scale"]
            m_size = constants["beta1"] * np.abs(before.m) + (1 - constants["beta1"]) * g
            update = m_size / (1 - constants["beta1"] ** t) / (np.sqrt(after.v / (1 - constants["beta2"] ** t)) + constants["eps"])
            weights = before.master if has_master else before.params
            weights = few * (settings["learning_rate"] * (2 * update + constants["weight_decay"] * np.abs(weights)) + np.abs(weights))
            either_neighbour = 2 * half_ulp(np.abs(after.params) + weights, storage) if storage == BFLOAT16_BITS else 0
            return {"m": few * m_size, "v": few * after.v, "master": weights, "params": weights + either_neighbour}

        return Call(name, tensors, launch, errors, reference, check)

    yield call("adamw, first step", 1, np.zeros(count), np.zeros(count))
    yield call("adamw, step 7", 7, normal(count), np.abs(normal(count)))
    if storage == FLOAT32:
        return

    def check_master(call, storage):
        # Here the parameters' very bits can be told: the master's, rounded with noise that is known.
        results, rows = run_on_device(call, storage)
        after, before = run_on_host(call, storage)
        errors = call.errors(after, before, storage)
        for name in ("m", "v", "master"):
            yield compare(call.name, name, results[name], getattr(after, name), errors[name], FLOAT32)
        expected = bfloat16_values(_stochastically_rounded(results["master"], **noise))
        yield compare(call.name, "params", results["params"], expected, 0.0)
        yield from rows

    yield call("adamw with master", 7, normal(count), np.abs(normal(count)), True, check_master)

    # From 1.0 a quarter of the way to the next bfloat16: rounded to the nearest it would stay for ever, so it must move on average.
    draws, step = 4096, 2.0**-10
    zeros, ones = np.zeros(draws, np.float32), np.ones(draws, np.float32)

    def check_mean(call, storage):
        results, rows = run_on_device(call, storage)
        mean = bfloat16_values(results["params"]).astype(np.float64).mean(keepdims=True)
        deviation = 2.0**-8 * math.sqrt(0.25 * 0.75 / draws)  # of the mean of so many draws with probability 1/4
        yield compare(call.name, "mean", mean, np.array([1 - step]), SPREAD * deviation)
        yield from rows

    yield Call(
        "adamw, tiny steps",
        dict(params=_changed(ones), grads=_read(ones), m=_changed(zeros, "f32"), v=_changed(zeros, "f32")),
        lambda a: adamw_update(a.params, a.grads, a.m, a.v, None, step, 0.5, 0.5, 0.0, 0.0, 1.0, t=1, **noise),
        check=check_mean,
    )


def _global_norm_calls(s, normal, storage):
    count = s.Vp * s.C  # the largest tensor

    def errors(after, before, storage):
        chain = count / (global_norm.BLOCKS * global_norm.THREADS) + global_norm.BLOCKS / global_norm.THREADS + 20
        return {"sum_squares": summation_error(chain, after.sum_squares)}

    yield Call(
        "global norm",
        dict(sum_squares=_written(1, kind="f32"), grads=_read(normal(count)), scratch=_scratch(global_norm.BLOCKS, kind="f32")),
        lambda a: sum_of_squares(a.sum_squares, a.grads, a.scratch),
        errors,
    )


_KERNEL_CALLS = {
    "encoder": _encoder_calls,
    "layernorm": _layernorm_calls,
    "matmul": _matmul_calls,
    "matmul without bias": lambda s, normal, storage: _matmul_calls(s, normal, storage, has_bias=False),
    "attention": _attention_calls,
    "gelu": _gelu_calls,
    "residual": _residual_calls,
    "classifier": _classifier_calls,
    "mean loss": _mean_loss_calls,
    "adamw": _adamw_calls,
    "global norm": _global_norm_calls,
}
