"""GPUs, as published by NVIDIA, and what an hour of one costs."""

from typing import NamedTuple

from gpt2_numba.errors import UserError


class Card(NamedTuple):
    """One kind of GPU."""

    name: str  # as its driver reports it, without NVIDIA
    memory_mib: int  # as nvidia-smi reports it
    bandwidth: float  # GB/s of its memory
    peak_tflops: float  # dense bfloat16
    link: float  # GB/s to the other GPUs of its host, both directions together: NVLink or PCIe
    # Share of the peak that large matrix products reach, published: github.com/stas00/ml-engineering, compute/accelerator ("MAMF"). 0.803 is
    # H100's and H200's; a card without a published share is given theirs.
    achievable: float = 0.803
    price: float | None = None  # dollars per GPU-hour, an assumption
    price_source: str = ""

    @property
    def memory_gib(self):
        return self.memory_mib / 1024


PAID_1558M = "what llm.c's run of 1558M paid in 2024: 672 dollars for 24 hours of 8"
CARDS = {
    "b200": Card("B200", 183359, 8000, 2250, 1800, 0.776),
    "h200": Card("H200", 143771, 4800, 989, 900, price=5.0, price_source="a listed price of 2026"),
    "gh200": Card("GH200", 97871, 4000, 989, 900, 0.838),
    "h100": Card("H100 80GB HBM3", 81559, 3350, 989, 900, price=3.5, price_source=PAID_1558M),
    "h100-pcie": Card("H100 PCIe", 81559, 2000, 756, 128),
    "a100": Card("A100-SXM4-80GB", 81920, 2039, 312, 600, 0.869, 1.75, "8 of them for 14 dollars an hour in 2024"),
    "a100-40": Card("A100-SXM4-40GB", 40960, 1555, 312, 600, 0.869),
    "a100-pcie": Card("A100 80GB PCIe", 81920, 1935, 312, 64, 0.811),
    "l40s": Card("L40S", 46068, 864, 362, 64),
    "l4": Card("L4", 23034, 300, 121, 64),
    "a10g": Card("A10G", 23028, 600, 70, 64),
    "a6000": Card("RTX A6000", 49140, 768, 155, 64),
    "4090": Card("GeForce RTX 4090", 24564, 1008, 165, 64),
    "3090": Card("GeForce RTX 3090", 24576, 936, 71, 64),
}


def find_card(name):
    """The key in CARDS of a name as typed, such as h100, H100 or rtx-4090. Raises UserError for an unknown one."""
    key = name.strip().lower().replace(" ", "-").removeprefix("nvidia-").removeprefix("rtx-")
    if key not in CARDS:
        raise UserError(f"--gpu must be one of {', '.join(CARDS)}, got {name[:40]!r}")
    return key


def card_of_device(device_name):
    """The key in CARDS of a GPU as its driver calls it, or None. Of H100s and A100s the name says which; the first that fits counts."""
    name = device_name.removeprefix("NVIDIA ")
    exact = [key for key, card in CARDS.items() if card.name == name]
    family = [key for key in CARDS if name.lower().split()[0].split("-")[0] == key]
    return next(iter(exact + family), None)
