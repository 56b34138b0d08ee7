"""How much of the chip's arithmetic a step uses: model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)."""

# Dense bfloat16 peak in FLOP/s by the vendor's data sheets, keyed by a part of the name that the driver gives.
_PEAK_BF16 = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "A10G": 70e12, "A10": 125e12, "A6000": 155e12,
}  # fmt: skip


def peak_flops(device_name):
    """Dense bfloat16 peak of a chip in FLOP/s, or None if it is not in the table."""
    return next((peak for part, peak in _PEAK_BF16.items() if part in device_name), None)


def flops_per_token(parameters, L, C, T):
    """FLOP of forward and backward per token: 6 for each parameter, and attention's products, as llm.c counts them."""
    return 6 * parameters + 6 * L * C * T
