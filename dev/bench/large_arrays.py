"""Arrays of more than 2**31 elements: do the fast kernels compute their indices in 64 bits, and the libraries theirs?

    python -m dev.bench.large_arrays                  # on a GPU with 80 GB: about a minute
    python -m dev.bench.large_arrays gelu classifier  # only those whose name contains one of these

Every layer runs twice, on a few rows and on so many copies of the same rows that an array has more than 2**31 elements. The last rows of
the large run must have the bits of the small one; where a library may choose another algorithm, they agree within bfloat16's rounding. Sums
over all rows, such as dweight, must be the small ones times the number of copies.
"""

import time
import zlib
from dataclasses import dataclass

import numpy as np
from numba import cuda

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import free_gpu_bytes, zero
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    bfloat16_bits,
    compute_stream,
    copy_to_host,
    device_name,
    real_gpu,
    synchronize,
    to_device,
)
from gpt2_numba.layers.fast import adamw, attention, classifier, encoder, gelu, global_norm, layernorm, matmul, residual

MORE_THAN = 2**31  # elements
ROUNDING = 2.0**-6  # of bfloat16, with a sum in another order
OF_SUMS = 2.0**-5  # the copies of a sum are added in bfloat16 in some of the layers
TAIL = 64  # rows that are compared


@dataclass(frozen=True)
class Widths:
    """Channels, heads, vocabulary, and the rows that are repeated."""

    C: int = 768
    NH: int = 12
    T: int = 1024
    V: int = 50257
    Vp: int = 50304
    period: int = 1024


class Rows:
    """Makes arrays of copies * period rows, each copy with the same numbers."""

    def __init__(self, widths, copies):
        self.widths, self.copies, self.N = widths, copies, copies * widths.period

    def filled(self, name, width, scale=1.0, dtype=BFLOAT16_BITS):
        """An array (N, width) of normal numbers, which depend on the name."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        block = (scale * rng.standard_normal((self.widths.period, width), np.float32)).astype(np.float32)
        return self.repeated(bfloat16_bits(block) if dtype == BFLOAT16_BITS else block)

    def tokens(self, name, below):
        return self.repeated(np.random.default_rng(zlib.crc32(name.encode())).integers(below, size=self.widths.period, dtype=np.int32))

    def repeated(self, block):
        array, part = self.empty(*block.shape[1:], dtype=block.dtype), cuda.to_device(block, stream=compute_stream())
        for copy in range(self.copies):
            array[copy * len(block) : (copy + 1) * len(block)].copy_to_device(part, stream=compute_stream())
        synchronize()
        return array

    def empty(self, *shape, dtype=BFLOAT16_BITS):
        return cuda.device_array((self.N, *shape), dtype)


# Each case: a function of Rows that launches once and returns (outputs by row, sums over the rows).


def gelu_forward(rows):
    inp, out = rows.filled("inp", 4 * rows.widths.C), rows.empty(4 * rows.widths.C)
    gelu.gelu_forward(out, inp)
    return {"out": out}, {}


def gelu_backward(rows):
    D = 4 * rows.widths.C
    dout, inp = rows.filled("dout", D), rows.filled("inp", D)
    dbias, scratch = zeros(D), zeros(gelu.gelu_scratch_size(D), dtype=FLOAT32)
    gelu.gelu_backward(dout, dout, inp, dbias=dbias, scratch=scratch)
    return {"dinp": dout}, {"dbias": dbias}


def residual_forward(rows):
    C = rows.widths.C
    inp, branch, out = rows.filled("inp", C), rows.filled("branch", C), rows.empty(C)
    residual.residual_forward(out, inp, branch)
    return {"out": out}, {}


def layernorm_forward(rows):
    C = rows.widths.C
    inp, branch, out, stream = rows.filled("inp", C), rows.filled("branch", C), rows.empty(C), rows.empty(C)
    mean, rstd = rows.empty(dtype=FLOAT32), rows.empty(dtype=FLOAT32)
    layernorm.residual_layernorm_forward(stream, out, mean, rstd, inp, branch, vector("weight", C), vector("bias", C))
    return {"residual": stream, "out": out, "mean": mean, "rstd": rstd}, {}


def layernorm_backward(rows):
    C = rows.widths.C
    dinp, dout, inp = rows.filled("dinp", C), rows.filled("dout", C), rows.filled("inp", C)
    mean, rstd = rows.filled("mean", 1, 0.1, FLOAT32).reshape((rows.N,)), rows.filled("rstd", 1, 0.1, FLOAT32).reshape((rows.N,))
    dweight, dbias, scratch = zeros(C), zeros(C), zeros(layernorm.layernorm_scratch_size(C), dtype=FLOAT32)
    layernorm.layernorm_backward(
        dinp=dinp, dweight=dweight, dbias=dbias, dout=dout, inp=inp, weight=vector("weight", C), mean=mean, rstd=rstd, scratch=scratch
    )
    return {"dinp": dinp}, {"dweight": dweight, "dbias": dbias}


def encoder_forward(rows):
    w = rows.widths
    out, tokens = rows.empty(w.C), rows.tokens("tokens", w.V).reshape((rows.N // w.T, w.T))
    encoder.encoder_forward(out, tokens, matrix("wte", w.Vp, w.C), matrix("wpe", w.T, w.C))
    return {"out": out}, {}


def encoder_backward(rows):
    w = rows.widths
    tokens = copy_to_host(rows.tokens("tokens", w.V)).reshape(-1, w.T)
    places, pieces = map(cuda.to_device, encoder.places_by_token(tokens, w.V))
    dwte, dwpe = zeros(w.Vp, w.C, dtype=FLOAT32), zeros(w.T, w.C, dtype=FLOAT32)
    dout = rows.filled("dout", w.C, dtype=FLOAT32)
    scratch = zeros(encoder.encoder_scratch_size(rows.N, w.C), dtype=FLOAT32)
    encoder.encoder_backward(dwte=dwte, dwpe=dwpe, dout=dout, places=places, pieces=pieces, scratch=scratch, T=w.T)
    return {}, {"dwte": dwte, "dwpe": dwpe}


def classifier_forward(rows):
    w = rows.widths
    losses, logits, targets = rows.empty(dtype=FLOAT32), rows.filled("logits", w.Vp), rows.tokens("targets", w.V)
    classifier.classifier_forward(losses, logits, targets, w.V)
    return {"losses": losses}, {}


def classifier_backward(rows):
    w = rows.widths
    losses, logits, targets = rows.empty(dtype=FLOAT32), rows.filled("logits", w.Vp), rows.tokens("targets", w.V)
    classifier.classifier_forward_backward(losses, logits, targets, 1.0, w.V)
    return {"losses": losses, "dlogits": logits}, {}


def matmul_forward(rows):
    C = rows.widths.C
    inp, out = rows.filled("inp", C), rows.empty(4 * C)
    matmul.matmul_forward(out, inp, matrix("weight", 4 * C, C), vector("bias", 4 * C))
    return {"out": out}, {}


def matmul_backward(rows):
    C = rows.widths.C
    dout, inp, dinp = rows.filled("dout", 4 * C), rows.filled("inp", C), rows.empty(C)
    dweight, dbias = zeros(4 * C, C), zeros(4 * C)
    scratch = zeros(matmul.matmul_scratch_size(4 * C), dtype=FLOAT32)
    matmul.matmul_backward(dinp=dinp, dweight=dweight, dbias=dbias, dout=dout, inp=inp, weight=matrix("weight", 4 * C, C), scratch=scratch)
    return {"dinp": dinp}, {"dweight": dweight, "dbias": dbias}


def attention_both(rows):
    w = rows.widths
    B = rows.N // w.T
    qkv, out, lse = rows.filled("qkv", 3 * w.C), rows.empty(w.C), cuda.device_array((B, w.NH, w.T), FLOAT32)
    scratch = cuda.device_array(attention.attention_scratch_size(B, w.T, w.NH, w.C // w.NH, BFLOAT16_BITS), FLOAT32)
    attention.attention_forward(out, lse, qkv, scratch)
    dqkv, dout = rows.empty(3 * w.C), rows.filled("dout", w.C)
    attention.attention_backward(dqkv, dout, out, lse, qkv, scratch)
    return {"out": out, "dqkv": dqkv}, {}


def adamw_update(rows):
    """Flat arrays, as many numbers as rows * 4C; float32, whose rounding does not depend on the place."""
    D, one = 4 * rows.widths.C, FLOAT32
    flat = {name: rows.filled(name, D, 0.1, one).reshape((rows.N * D,)) for name in ("params", "grads")}
    m, v = zeros(rows.N * D, dtype=one), zeros(rows.N * D, dtype=one)
    ranges = to_device(np.array([[0, 0, 0, 1], [rows.N * D] * 3 + [0]], np.int64))
    partials = zeros(global_norm.BLOCKS, dtype=one)
    global_norm.sum_of_squares(partials, flat["grads"], ranges)
    adamw.adamw_update(
        **flat, m=m, v=v, master=None, step_values=to_device(np.array([1e-3, 0.1, 0.05], np.float32)),
        rounding_seed=to_device(np.array([7], np.uint32)), norm_and_scale=to_device(np.ones(2, np.float32)), ranges=ranges,
        beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1,
    )  # fmt: skip
    by_row = {"params": flat["params"], "m": m, "v": v}
    total = to_device(copy_to_host(partials).sum(dtype=np.float64, keepdims=True).astype(np.float32))
    return {name: array.reshape((rows.N, D)) for name, array in by_row.items()}, {"sum of squares": total}


# name -> (function, columns of its largest array in multiples of C, or None: Vp; may a library choose another algorithm?)
CASES = {
    "gelu forward": (gelu_forward, 4, False),
    "gelu backward": (gelu_backward, 4, False),
    "residual forward": (residual_forward, 1, False),
    "layernorm forward": (layernorm_forward, 1, False),
    "layernorm backward": (layernorm_backward, 1, False),
    "encoder forward": (encoder_forward, 1, False),
    "encoder backward": (encoder_backward, 1, False),
    "classifier forward": (classifier_forward, None, False),
    "classifier backward": (classifier_backward, None, False),
    "matmul forward": (matmul_forward, 4, True),
    "matmul backward": (matmul_backward, 4, True),
    "attention": (attention_both, 3, True),
    "adamw and norm": (adamw_update, 4, False),
}


def vector(name, size):
    return to_device(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(size).astype(np.float32), BFLOAT16_BITS)


def matrix(name, rows, columns):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal((rows, columns), np.float32)
    return to_device(values / np.float32(np.sqrt(columns)), BFLOAT16_BITS)


def zeros(*shape, dtype=BFLOAT16_BITS):
    array = cuda.device_array(shape, dtype)
    zero(array)
    return array


def run_case(name, widths, more_than=MORE_THAN):
    """[problem as text] of one case, and the elements of its largest array."""
    function, multiple, by_library = CASES[name]
    width = widths.Vp if multiple is None else multiple * widths.C
    copies = more_than // (widths.period * width) + 1
    expected_rows, expected_sums = _fetched(function(Rows(widths, 1)), widths)
    got_rows, got_sums = _fetched(function(Rows(widths, copies)), widths)
    problems = []
    for key, expected in expected_rows.items():
        got = got_rows[key]
        same = np.allclose(got, expected, atol=ROUNDING * np.abs(expected).max()) if by_library else np.array_equal(got, expected)
        if not same:
            problems.append(
                f"{key}: the last rows differ, by up to {np.nanmax(np.abs(got - expected)):.3g} of {np.abs(expected).max():.3g}"
            )
    for key, expected in expected_sums.items():
        error, bound = np.abs(got_sums[key] - copies * expected).max(), OF_SUMS * copies * np.abs(expected).max()
        if not error <= bound:
            problems.append(f"{key}: differs from {copies} times that of one copy by {error:.3g}, bound {bound:.3g}")
    return problems, copies * widths.period * width


def _fetched(results, widths):
    """The last TAIL rows of each output, which lie beyond 2**31 elements, and all of each sum, on the host."""
    synchronize()
    rows, sums = results
    tail = min(TAIL, widths.period)
    return {name: copy_to_host(a[a.shape[0] - tail :]) for name, a in rows.items()}, {name: copy_to_host(a) for name, a in sums.items()}


def run(argv):
    """Print a line for each case. Returns the exit code: 1 if one is wrong."""
    parser = Parser(prog="python -m dev.bench.large_arrays", description="Arrays of more than 2**31 elements.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"parts of names: {', '.join(CASES)}")
    parser.add_argument("--channels", type=int, default=768, help="C, a multiple of 64 (default: 768)")
    arguments = parser.parse_args(argv)
    if not real_gpu():
        raise UserError("arrays of this size need a GPU; tests/test_large_arrays.py runs the same with small ones")
    widths = Widths(C=arguments.channels, NH=arguments.channels // 64)
    print(f"{device_name()}, {free_gpu_bytes() / 2**30:.0f} GiB free, C={widths.C}")
    failed = False
    for name in CASES:
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        begin = time.monotonic()
        try:
            problems, elements = run_case(name, widths)
            verdict = "; ".join(problems) or "ok"
            failed = failed or bool(problems)
        except cuda.cudadrv.driver.CudaAPIError as error:
            if "MEMORY" not in str(error):
                raise
            elements, verdict = 0, "not tried: too little memory"
        cuda.current_context().memory_manager.deallocations.clear()
        print(f"{name:<20} {elements:14,d} elements {time.monotonic() - begin:6.1f} s  {verdict}", flush=True)
    return int(failed)


def main(argv):
    """The command line. Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
