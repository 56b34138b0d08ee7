"""The time of a step on one GPU, for any model on any card.

    time of a part = max(bytes / copy rate, FLOP / matmul rate) / share      share: measured, interpolated between two widths of models
    time of a step = sum of its parts * stretch                              so that the measured speeds of d12 and d48 come out

A card's rates are an H200's measured ones times what NVIDIA publishes of the two: bandwidth, and peak (with the published share of it that
large products reach). So H100s and H200s are as measured; other cards are an estimate.
"""

import functools
import math

import numpy as np

from gpt2_numba.config import parse_descriptor
from gpt2_numba.kernel_sets import KernelSet
from gpt2_numba.options import Options
from gpt2_numba.planning.cards import CARDS
from gpt2_numba.planning.measured import (
    COPY_RATE,
    LARGER_HEADS,
    LIMITS_CARD,
    MATMUL_RATE,
    MEASURED_FUSION,
    OTHER_SHARES,
    SHARES,
    SLOWER_ROWS,
    SLOWER_ROWS_T,
    SPEEDS,
    WIDTHS,
)
from gpt2_numba.planning.one_gpu import OneGpu
from gpt2_numba.planning.parts import parts_of_step

EVERY_SIZE = 64  # up to here the time of a micro-step is computed for every number of rows
MODELS = "d12", "d48"  # the models of WIDTHS


def can_predict(options):
    """Whether a step with these Options is one of those measured: fast kernels on a GPU, in fp32 with TF32."""
    return options.device == "gpu" and options.kernel_set.fused and (options.precision == "bf16" or options.tf32)


def predicted(config, B, T, options, card):
    """The OneGpu of a model with micro-batches of (B, T) tokens. options: Options for which can_predict holds. card: a key of CARDS."""
    stretch = _between(_stretches(card, options.precision), config.C)
    copy_rate, _ = _rates(card, options.precision)
    gpu = _sum(config, B, T, options, card).slower(stretch)
    of_B = _slower_row(config.C, B * T, options.precision)
    shares = tuple((size, size / B * _slower_row(config.C, size * T, options.precision) / of_B) for size in _sizes(B))
    # What a small micro-batch loses is not part of AdamW and of the norm.
    small = gpu._replace(shares=shares).slower(of_B)
    return small._replace(norm=gpu.norm, adamw=gpu.adamw, copy_rate=copy_rate / 1e9)


def _sizes(B):
    """Numbers of rows up to B between which the time of a micro-step is nearly linear."""
    return sorted({*range(1, min(B, EVERY_SIZE) + 1), *(2**n for n in range(B.bit_length())), B})


def _sum(config, B, T, options, card):
    """The OneGpu that the parts of a step add up to, micro-batches as large as those measured."""
    ms = dict.fromkeys(("forward", "head", "layer", "tail", "norm", "adamw"), 0.0)
    copy_rate, matmul_rate = _rates(card, options.precision)
    for part in parts_of_step(config, B, T, options):
        least = max(part.nbytes / copy_rate, part.flop / matmul_rate)
        ms[part.phase] += 1000 * part.calls * least / _share(part.name, config, options.precision)
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


def _slower_row(C, tokens, precision):
    """Time per row of a micro-batch of `tokens` tokens, relative to a micro-batch of the size that SHARES were measured with."""
    if precision == "fp32":  # measured with a smaller micro-batch, and for one width
        B = SPEEDS[LIMITS_CARD, "fp32"][0][1]
        return max(1.0, _slower_row(C, tokens, "bf16") / _slower_row(WIDTHS[0], B * SLOWER_ROWS_T, "bf16"))
    multiples = []
    for width, rows in zip(WIDTHS, SLOWER_ROWS):
        sizes = [math.log(B * SLOWER_ROWS_T * width) for B, _ in rows]
        multiples.append(float(np.interp(math.log(tokens * C), sizes, [multiple for _, multiple in rows])))
    return _between(multiples, C)


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
        gpu = _sum(parse_descriptor(model), B, SLOWER_ROWS_T, options, card)
        parts = tokens / (B * SLOWER_ROWS_T) * gpu.micro_step + gpu.norm + gpu.adamw
        stretches.append(tokens / speed * 1000 / parts)
    return stretches
