"""What a training step computes, part by part: the fewest bytes to and from memory, and the floating-point operations of matrix products.

The counts are those of the ruler (dev/bench/costs.py), written for the sizes of a model instead of the arguments of a launch: each input read
once, each output written once, accumulators both; two FLOP per multiply-add; causal attention as a triangle. A part's name is the ruler's.
"""

from typing import NamedTuple

from gpt2_numba.config import count_parameters


class Part(NamedTuple):
    """One kind of launch. A part with FLOP is bound by products or by memory, one without by memory."""

    name: str
    phase: str  # forward, head, layer, tail: of a micro-step, see OneGpu; norm, adamw: once per step
    calls: int  # in the phase; in "layer" for all layers
    nbytes: int  # of one call
    flop: int = 0


def parts_of_step(config, B, T, options):
    """The Parts of a step of the fast kernels, with micro-steps of (B, T) tokens. options: Options (precision, recompute, gelu_fusion)."""
    return (
        _micro_step(config, B * T, T, options)
        + _attention(config, B, T, options)
        + _recomputed(config, B * T, options)
        + _update(config, options)
    )


def _element(options):
    """Bytes of a parameter, a gradient or an activation."""
    return 4 if options.precision == "fp32" else 2


def _micro_step(config, N, T, options):
    """Everything but attention."""
    L, C, e = config.L, config.C, _element(options)
    row = N * C * e  # bytes of one array of activations
    fused_forward, fused_backward = options.gelu_fusion >= 1, options.gelu_fusion >= 2
    linear = {"qkv": (3 * C, C), "attproj": (C, C), "fc": (4 * C, C), "fcproj": (C, 4 * C)}
    parts = [
        Part("encoder_forward", "forward", 1, 2 * row - max(0, N - config.Vp) * C * e + T * C * e + 4 * N),
        Part("layernorm_forward", "forward", 1, 2 * row + 8 * N),
        Part("residual_layernorm_forward", "forward", 2 * L, 4 * row + 8 * N),
    ]
    for name, (OC, inputs) in linear.items():
        gelu = name == "fc" and fused_forward
        nbytes = e * (N * inputs + OC * inputs + N * OC * (2 if gelu else 1))
        parts.append(Part(f"matmul_{'gelu_' if gelu else ''}forward {name}", "forward", L, nbytes, 2 * N * OC * inputs))
    if not fused_forward:
        parts.append(Part("gelu_forward", "forward", L, 8 * row))
    logits = N * config.Vp
    parts += [
        Part("matmul_forward classifier", "forward", 1, e * (N * C + config.Vp * C + logits), 2 * logits * C),
        Part("classifier_forward_backward", "head", 1, 2 * e * logits + 8 * N),
        Part("matmul_backward classifier", "head", 1, e * (2 * N * C + logits + 3 * config.Vp * C), 4 * logits * C),
        Part("zero", "head", 1, row),
        Part("layernorm_backward", "layer", 2 * L + 1, 4 * row + 8 * N),
    ]
    for name, (OC, inputs) in linear.items():
        before_gelu = N * inputs if name == "fcproj" and fused_backward else 0
        nbytes = e * (N * OC + 2 * N * inputs + before_gelu + 3 * OC * inputs)
        parts.append(Part(f"matmul_backward {name}", "layer", L, nbytes, 4 * N * OC * inputs))
    if not fused_backward:
        parts.append(Part("gelu_backward", "layer", L, 12 * row))
    rows = min(N, config.Vp) + T  # of wte and wpe that get a gradient
    return [*parts, Part("encoder_backward", "tail", 1, row + 2 * rows * C * e + 8 * N)]


def _attention(config, B, T, options):
    L, C, e = config.L, config.C, _element(options)
    N, lse = B * T, 4 * B * config.NH * T
    multiply_adds = B * (T * (T + 1) // 2) * C  # of one product, of which every query sees the keys up to its own
    return [
        Part("attention_forward", "forward", L, 4 * N * C * e + lse, 2 * 2 * multiply_adds),
        Part("attention_backward", "layer", L, 8 * N * C * e + lse, 5 * 2 * multiply_adds),
    ]


def _recomputed(config, N, options):
    """What backward computes again with -r 1 and -r 2."""
    row, parts = N * config.C * _element(options), []
    if options.recompute >= 1:
        parts.append(Part("gelu_forward", "layer", config.L, 8 * row))
    if options.recompute >= 2:
        parts.append(Part("layernorm_forward", "layer", 2 * config.L, 2 * row + 8 * N))
    return parts


def _update(config, options):
    """All parameters, as on one GPU: gradients read by both; m, v and the master weights read and written."""
    count, e = count_parameters(config), _element(options)
    master = options.precision == "bf16" and options.master_weights
    adamw = e + (e + 24 if master else 2 * e + 16)  # with master weights the parameters are only written
    return [
        Part("zero", "norm", 1, e * count),
        Part("sum_of_squares", "norm", 1, e * count),
        Part("adamw_update", "adamw", 1, adamw * count),
    ]
