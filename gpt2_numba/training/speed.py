"""How much of the chip's arithmetic a step uses: model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)."""

import re

# Dense bfloat16 peak in FLOP/s by the vendor's data sheets, keyed by a part of the name that the driver gives.
_PEAK_BF16 = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "A10G": 70e12, "A10": 125e12, "A6000": 155e12,
}  # fmt: skip

# What a multiprocessor's tensor cores do per clock in dense bfloat16 with float32 sums, by compute capability: the vendor's
# architecture white papers. Consumer chips of 8.6, 8.9 and 12.0 do half of it with float32 sums; the figure here is theirs.
_FLOP_PER_CLOCK = {(8, 0): 2048, (8, 6): 512, (8, 7): 1024, (8, 9): 512, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192, (12, 0): 512}


def peak_flops(device_name, compute_capability, multiprocessors, clock_hz):
    """Dense bfloat16 peak of a chip in FLOP/s: by its name if that is known, else by its properties; None if those are not known."""
    by_name = next((peak for part, peak in _PEAK_BF16.items() if re.search(rf"\b{part}\b", device_name)), None)  # an L40 is no L4
    per_clock = _FLOP_PER_CLOCK.get(tuple(compute_capability))
    return by_name or (per_clock and per_clock * multiprocessors * clock_hz)


def flops_per_token(parameters, L, C, T):
    """FLOP of forward and backward per token: 6 for each parameter, and attention's products, as llm.c counts them."""
    return 6 * parameters + 6 * L * C * T
