"""The least work of a launch: bytes to and from memory, and floating-point operations, by formula from the shapes of the arguments.

Bytes: each input is read once, each output written once, and an accumulator both; scratch does not count, since a better kernel might do
without it. FLOP: two per multiply-add in matrix products, with causal attention counted as a triangle; for everything else roughly, from
the formula: these only place a kernel on the axis of the roofline and never bound it.

    floor = max(bytes / copy rate, FLOP / matmul rate)    the second for matrix products only
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace


@dataclass(frozen=True)
class Count:
    """How a function uses its arguments, as names separated by spaces, and its FLOP as a function of the arguments."""

    read: str = ""
    written: str = ""
    changed: str = ""
    scratch: str = ""
    flop: Callable = lambda a: 0
    is_product: bool = False  # its FLOP are those of matrix products, on tensor cores
    elements: dict = field(default_factory=dict)  # name -> the number of elements touched, if not all are


@dataclass(frozen=True)
class Cost:
    """The fewest bytes and FLOP of one call."""

    bytes: int
    flop: int
    is_product: bool

    def __add__(self, other):
        return Cost(self.bytes + other.bytes, self.flop + other.flop, self.is_product or other.is_product)

    def floor(self, ceilings):
        """The least milliseconds of the call. ceilings: a dictionary with copy (byte/s) and matmul (FLOP/s)."""
        return max(self._floors(ceilings))

    def bound(self, ceilings):
        """Which ceiling determines the floor: "memory" or "matmul"."""
        by_memory, by_matmul = self._floors(ceilings)
        return "memory" if by_memory >= by_matmul else "matmul"

    def _floors(self, ceilings):
        return 1000 * self.bytes / ceilings["copy"], 1000 * self.flop / ceilings["matmul"] if self.is_product else 0.0


def _each(name, flop):
    """`flop` for each element of an argument."""
    return lambda a: flop * getattr(a, name).size


def _matmul(products):
    """Products of (N, C) and (OC, C)."""
    return lambda a: products * 2 * a.inp.shape[0] * a.weight.size


def _attention(products):
    """Matrix products of which every head needs T (T + 1) / 2 results, or terms, of HS values each."""

    def flop(a):
        B, _, T = a.lse.shape
        return products * 2 * B * (T * (T + 1) // 2) * a.out.shape[1]

    return flop


def _gemm(a):
    batch = a.out.shape[0] if a.out.ndim == 3 else 1
    return 2 * batch * a.rows * a.columns * a.inner


def _token_rows(name, rows):
    """As many rows of wte as there are tokens, or all rows: nearly all tokens of a random batch differ."""
    return lambda a: min(getattr(a, rows).shape[0], getattr(a, name).shape[0]) * getattr(a, name).shape[1]


# A step of AdamW: 2 moments, 2 corrections, root, quotient, decay, update. A logit: maximum, exp, sum; exp, product. GELU: tanh counts as
# 1. Plain and fast functions of the same name share a formula: an argument that a function does not have counts as nothing.
COUNTS = {
    "encoder_forward": Count(
        "tokens wte wpe", "out", flop=_each("out", 1),
        elements={"wte": _token_rows("wte", "out"), "wpe": lambda a: a.tokens.shape[1] * a.wpe.shape[1]}),
    "encoder_backward": Count(
        "dout tokens places pieces", changed="dwte dwpe", scratch="scratch", flop=_each("dout", 2),
        elements={"dwte": _token_rows("dwte", "dout"), "dwpe": lambda a: (a.T or a.tokens.shape[1]) * a.dwpe.shape[1]}),
    "layernorm_forward": Count("inp weight bias", "out mean rstd", flop=_each("inp", 7)),
    "residual_layernorm_forward": Count("inp branch weight bias", "residual out mean rstd", flop=_each("inp", 8)),
    "layernorm_backward": Count(
        "dout inp weight mean rstd", changed="dinp dweight dbias dinp_sums", scratch="scratch", flop=_each("inp", 14)),
    "residual_forward": Count("inp branch", "out", flop=_each("inp", 1)),
    "residual_backward": Count("dout", "dinp dbranch"),
    "matmul_forward": Count("inp weight bias", "out", flop=_matmul(1), is_product=True),
    "matmul_gelu_forward": Count("inp weight bias", "out before_gelu", flop=_matmul(1), is_product=True),
    "matmul_backward": Count(
        "dout inp weight before_gelu", "dinp", "dweight dbias", "scratch", flop=_matmul(2), is_product=True),
    "attention_forward": Count("qkv", "out lse", scratch="scratch", flop=_attention(2), is_product=True),
    "attention_backward": Count("dout out lse qkv", "dqkv", "dbias", "scratch", flop=_attention(5), is_product=True),
    "gelu_forward": Count("inp", "out", flop=_each("inp", 9)),
    "gelu_backward": Count("dout inp", "dinp", "dbias", "scratch", flop=_each("inp", 16)),
    "classifier_forward": Count("logits targets", "losses", flop=_each("logits", 5)),
    "classifier_forward_backward": Count("targets", "losses", "logits", flop=_each("logits", 8)),
    "accumulate_mean": Count("values", changed="mean", flop=_each("values", 1)),
    "sum_of_squares": Count("grads ranges", "partials", flop=_each("grads", 2)),
    "norm_and_scale": Count("partials loss", "result", flop=_each("partials", 1)),
    "adamw_update": Count(
        "grads step_values rounding_seed norm_and_scale ranges", changed="params m v master", flop=_each("params", 16),
        # With master weights the parameters are only written: half of reading and writing.
        elements={"params": lambda a: a.params.size if a.master is None else a.params.size / 2}),
    "zero": Count(written="array"),
    "gemm": Count("a b bias before_gelu", "out save_before_gelu", flop=_gemm, is_product=True),
    "bias_backward_kernel": Count("dout", scratch="partials", flop=_each("dout", 1)),
}  # fmt: skip


def launch_cost(part):
    """The Cost of a launch or a part; None if there is no formula."""
    count = COUNTS.get(part.name)
    if count is None:
        return None
    a = _Arguments(**part.arguments)

    def size(name):
        array = getattr(a, name)
        if array is None:
            return 0
        elements = count.elements[name](a) if name in count.elements else math.prod(array.shape)
        return elements * array.dtype.itemsize

    once = sum(size(name) for name in f"{count.read} {count.written}".split())
    twice = sum(size(name) for name in count.changed.split())
    if part.name == "gemm" and a.accumulate:
        once += size("out")
    return Cost(int(once + 2 * twice), int(count.flop(a)), count.is_product)


class _Arguments(SimpleNamespace):
    """Arguments by name; one that a function does not have is None, like one not passed."""

    def __getattr__(self, name):  # called for missing attributes
        if name.startswith("__"):
            raise AttributeError(name)
