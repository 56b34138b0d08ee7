"""Model FLOP utilisation: the fraction of the chip's peak that a step uses (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)."""

import re

# Dense bfloat16 peak in FLOP/s from the vendor's data sheets, keyed by part of the name that the driver reports.
_PEAK_BF16 = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "A10G": 70e12, "A10": 125e12, "A6000": 155e12,
}  # fmt: skip

# FLOP per clock of a multiprocessor's tensor cores in dense bfloat16 with float32 sums, by compute capability, from the vendor's
# architecture white papers. Consumer chips of 8.6, 8.9 and 12.0 run at half rate with float32 sums; the figures here are theirs.
_FLOP_PER_CLOCK = {(8, 0): 2048, (8, 6): 512, (8, 7): 1024, (8, 9): 512, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192, (12, 0): 512}


def peak_flops(device_name, compute_capability, multiprocessors, clock_hz):
    """Dense bfloat16 peak of a chip in FLOP/s: by its name if known, else by its properties; None if both are unknown."""
    by_name = next(
        (peak for part, peak in _PEAK_BF16.items() if re.search(rf"\b{part}\b", device_name)), None
    )  # whole words: an L40 is no L4
    per_clock = _FLOP_PER_CLOCK.get(tuple(compute_capability))
    return by_name or (per_clock and per_clock * multiprocessors * clock_hz)


def flops_per_token(parameters, L, C, T):
    """FLOP per token of the forward and backward passes, as llm.c counts them: 6 per parameter, plus attention's products."""
    return 6 * parameters + 6 * L * C * T
