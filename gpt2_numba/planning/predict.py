"""The time of a step on one GPU, for any model on any card.

    time of a launch = max(bytes / copy rate, FLOP / matmul rate) / share + 7 µs
                                                                share: measured, interpolated between two widths of models
    time of a step   = sum of its launches * stretch            so that the measured speeds of d12 and d48 come out
    in fp8           = that of the same step in bf16 * share    the share is measured

A card's rates are an H200's measured ones times what NVIDIA publishes of the two: bandwidth, and peak (with the published share of it that
large products reach). So H100s and H200s are as measured; other cards are an estimate.
"""

import functools
import math
from dataclasses import replace

import numpy as np

from gpt2_numba.config import parse_descriptor
from gpt2_numba.kernel_sets import KernelSet
from gpt2_numba.options import Options
from gpt2_numba.planning.cards import CARDS
from gpt2_numba.planning.measured import (
    COPY_RATE,
    FLOAT8_TIME,
    LARGER_HEADS,
    LAUNCH_MS,
    LIMITS_CARD,
    MATMUL_RATE,
    MEASURED_FUSION,
    MEASURED_T,
    OTHER_SHARES,
    SHARES,
    SPEEDS,
    WIDTHS,
)
from gpt2_numba.planning.one_gpu import OneGpu
from gpt2_numba.planning.parts import parts_of_step

MODELS = "d12", "d48"  # the models of WIDTHS


def can_predict(options):
    """Whether a step with these Options is one of those measured: fast kernels on a GPU, in bf16, in fp8 or in fp32 with TF32."""
    return options.device == "gpu" and options.kernel_set.fused and (options.precision == "bf16" or options.tf32)


def predicted(config, B, T, options, card):
    """The OneGpu of a model with micro-batches of (B, T) tokens. options: Options for which can_predict holds. card: a key of CARDS."""
    if options.float8:
        bf16 = replace(options, float8=False, gelu_fusion=MEASURED_FUSION["bf16"])
        return predicted(config, B, T, bf16, card).slower(_between(FLOAT8_TIME, config.C))
    gpu = _sum(config, B, T, options, card)
    shares = tuple((rows, _sum(config, rows, T, options, card).micro_step / gpu.micro_step) for rows in _fewer_rows(B))
    return gpu._replace(shares=shares).slower(_between(_stretches(card, options.precision), config.C))


def _fewer_rows(B):
    """Numbers of rows up to B between which the time of a micro-step is nearly linear."""
    return sorted({*(2**n for n in range(B.bit_length())), B})


def _sum(config, B, T, options, card):
    """The OneGpu that the launches of a step add up to."""
    ms = dict.fromkeys(("forward", "head", "layer", "tail", "norm", "adamw"), 0.0)
    copy_rate, matmul_rate = _rates(card, options.precision)
    for part in parts_of_step(config, B, T, options):
        least = max(part.nbytes / copy_rate, part.flop / matmul_rate)
        ms[part.phase] += part.calls * (1000 * least / _share(part.name, config, options.precision) + LAUNCH_MS)
    ms["layer"] /= config.L
    return OneGpu(B=B, T=T, layers=config.L, copy_rate=copy_rate / 1e9, element=4 if options.precision == "fp32" else 2, **ms)


def _rates(card, precision):
    """Bytes and FLOP a second of a card, from those measured on an H200."""
    other, known = CARDS[card], CARDS[LIMITS_CARD]
    products = other.peak_tflops * other.achievable / (known.peak_tflops * known.achievable)
    return COPY_RATE * other.bandwidth / known.bandwidth, MATMUL_RATE[precision] * products


def _share(name, config, precision):
    """The share of its limit that a part reaches."""
    if name.startswith("attention") and precision == "bf16" and config.HS > 64:
        nearest = min(LARGER_HEADS, key=lambda size: abs(size - config.HS))
        return LARGER_HEADS[nearest][name == "attention_backward"]
    return _between((SHARES[precision] | OTHER_SHARES[precision])[name], config.C)


def _between(values, C):
    """A value for C channels: interpolated between those of WIDTHS in the logarithm, constant outside. One value serves all."""
    if len(values) == 1:
        return values[0]
    return float(np.interp(math.log(C), [math.log(width) for width in WIDTHS], values))


def _stretches(card, precision):
    """Measured time over the sum of the parts for each measured model: the card's own, or the mean over the cards that were measured."""
    measured = {name: _stretch(name, precision) for name, kind in SPEEDS if kind == precision}
    if card in measured:
        return measured[card]
    return [sum(values) / len(values) for values in zip(*measured.values())]


@functools.cache
def _stretch(card, precision):
    options = Options("gpu", precision, recompute=0, gelu_fusion=MEASURED_FUSION[precision], kernels=KernelSet("fast", fused=True))
    stretches = []
    for model, B, tokens, speed in SPEEDS[card, precision]:
        gpu = _sum(parse_descriptor(model), B, MEASURED_T, options, card)
        parts = tokens / (B * MEASURED_T) * gpu.micro_step + gpu.norm + gpu.adamw
        stretches.append(tokens / speed * 1000 / parts)
    return stretches
