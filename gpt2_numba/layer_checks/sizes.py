"""The sizes of the arrays in the checks: awkward sizes for the simulator, production sizes for a GPU; and tokens to match.

The fast kernels need a multiple of eight channels; the plain ones and the references take any number.
"""

from dataclasses import dataclass, replace

import numpy as np


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


# All distinct, and awkward.
REFERENCE_SIZES = Sizes(B=2, T=5, C=21, NH=3, V=37, Vp=40, OC=13)
AWKWARD = Sizes(B=2, T=5, C=48, NH=3, V=101, Vp=128, OC=56)
# Just over what a warp or block processes at a time, so that the kernels' loops run a second iteration:
WIDE = Sizes(B=1, T=3, C=264, NH=3, V=1021, Vp=1024, OC=264)  # 256 columns per warp; 512 logits per block in the simulator
WIDEST = Sizes(B=1, T=7, C=520, NH=5, V=37, Vp=64, OC=8)  # several warps per row, and several times eight columns per thread
LONG = Sizes(B=1, T=261, C=8, NH=1, V=37, Vp=64, OC=8)  # more rows than the blocks of a sum over rows process at a time
# For the plain kernels: heads of 13 channels; primes or multiples of them, all larger than a tile and, except OC, than a simulated block.
ODD = Sizes(B=2, T=7, C=39, NH=3, V=101, Vp=107, OC=53)
ONES = Sizes(B=1, T=1, C=1, NH=1, V=2, Vp=2, OC=1)
MANY_ROWS = Sizes(B=1, T=67, C=3, NH=1, V=11, Vp=13, OC=3)  # more rows and tokens than a block has threads
PRODUCTION_SIZES = (
    Sizes(B=4, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=3072),  # GPT-2 124M
    Sizes(B=1, T=1023, C=768, NH=12, V=257, Vp=384, OC=2304),  # attention rows that end in padding; bytes as tokens
    Sizes(B=3, T=77, C=1600, NH=25, V=5003, Vp=5120, OC=4800),  # the channels of GPT-2 1558M
)


def small_sizes(layer, precision, kernels="fast"):
    """Sizes that take the simulator seconds. The number of loop iterations does not depend on the type: WIDE and LONG in fp32 only."""
    if kernels == "plain":
        # Heads of 80 and 96 channels: some of a block's 128 threads have no channel.
        wide_heads = (Sizes(B=1, T=3, C=NH * HS, NH=NH, V=3, Vp=3, OC=1) for NH, HS in ((1, 80), (2, 96)))
        return ODD, ONES, *(wide_heads if layer == "attention" else (MANY_ROWS,))
    by_layer = {
        "layernorm": (AWKWARD, WIDE, WIDEST, LONG),
        "matmul": (AWKWARD, Sizes(B=1, T=3, C=8, NH=1, V=37, Vp=64, OC=264), LONG),
        "matmul without bias": (Sizes(B=2, T=5, C=40, NH=5, V=67, Vp=72, OC=72),),
        "attention": (AWKWARD, LONG),
        "classifier": (AWKWARD, WIDE),
        "adamw": (AWKWARD,),
    }
    all_sizes = by_layer.get(layer, (AWKWARD, WIDE, LONG))
    return all_sizes if precision == "fp32" else all_sizes[:1]


def production_sizes(layer):
    """Sizes for a real GPU. The references take most of the time, so arrays that are quadratic in T or have Vp columns get fewer rows."""
    batch = {"attention": 2, "classifier": 1, "matmul without bias": 1}.get(layer)
    first = PRODUCTION_SIZES[0] if batch is None else replace(PRODUCTION_SIZES[0], B=batch)
    return first, *PRODUCTION_SIZES[1:]


def awkward_tokens(s):
    """Tokens (B, T), int32: one in three is the same, and the first and last of the vocabulary occur."""
    random = np.random.default_rng(317)
    tokens = np.where(random.random((s.B, s.T)) < 0.3, 7, random.integers(0, s.V, (s.B, s.T))).astype(np.int32)
    tokens[0, 0], tokens[-1, -1] = s.V - 1, 0
    return tokens
