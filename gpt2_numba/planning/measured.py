"""What was measured of this program, for predictions: shares of the limits, speeds, the time of a launch, memory outside the arena.

Each table names its measurement, a folder of dev/bench (tests/test_plan.py compares them), the card and the date.
"""

# The limits, one H200, 2026-11-22, sustained for two seconds: dev/bench/2026-11-22-h200-ruler-d12 and -fp32.
LIMITS_CARD = "h200"
COPY_RATE = 4.20e12  # bytes a second, read plus written
MATMUL_RATE = {"bf16": 701.7e12, "fp32": 355.0e12}  # FLOP a second; fp32: with TF32

# Share of its limit that each part of a step reaches in the step. bf16: d12 (768 channels, B=64) and d48 (1,600 channels, B=16), T=1024;
# fp32: d12, B=16, with TF32. The same card and day: dev/bench/2026-11-22-h200-ruler-d12, -d48, -fp32.
WIDTHS = 768, 1600
SHARES = {
    "bf16": {
        "encoder_forward": (0.850, 0.823), "layernorm_forward": (0.874, 0.754), "residual_layernorm_forward": (0.967, 0.940),
        "matmul_forward qkv": (0.917, 1.002), "attention_forward": (0.410, 0.405), "matmul_forward attproj": (0.994, 1.000),
        "matmul_gelu_forward fc": (0.766, 0.937), "matmul_forward fcproj": (1.081, 1.043), "matmul_forward classifier": (1.122, 1.096),
        "classifier_forward_backward": (0.691, 0.706), "matmul_backward classifier": (1.122, 1.065),
        "layernorm_backward": (0.804, 0.597), "matmul_backward fcproj": (0.855, 0.955), "matmul_backward fc": (0.933, 0.950),
        "matmul_backward attproj": (0.933, 0.929), "attention_backward": (0.386, 0.362), "matmul_backward qkv": (0.869, 0.930),
        "encoder_backward": (0.483, 0.449), "zero": (0.874, 1.068), "global_norm": (0.902, 1.079), "adamw_update": (0.833, 0.953),
    },
    "fp32": {
        "encoder_forward": (0.748,), "layernorm_forward": (0.776,), "residual_layernorm_forward": (0.792,), "matmul_forward qkv": (1.053,),
        "attention_forward": (0.286,), "matmul_forward attproj": (0.944,), "matmul_forward fc": (1.071,), "gelu_forward": (0.771,),
        "matmul_forward fcproj": (1.089,), "matmul_forward classifier": (1.069,), "classifier_forward_backward": (0.741,),
        "matmul_backward classifier": (0.866,), "layernorm_backward": (0.667,), "matmul_backward fcproj": (0.631,),
        "gelu_backward": (0.700,), "matmul_backward fc": (0.651,), "matmul_backward attproj": (0.546,), "attention_backward": (0.207,),
        "matmul_backward qkv": (0.577,), "encoder_backward": (0.643,), "zero": (0.803,), "global_norm": (0.975,), "adamw_update": (0.852,),
    },
}  # fmt: skip
# Parts that these steps do not have. GELU by itself in bf16: dev/bench/2026-11-28-h200-kernel-sets/ladder.txt. The products next to it:
# as those of qkv in bf16, and as without the GELU in fp32.
OTHER_SHARES = {
    "bf16": {"gelu_forward": (0.922,), "gelu_backward": (0.973,), "matmul_forward fc": (0.917, 1.002)},
    "fp32": {"matmul_gelu_forward fc": (1.071,)},
}
# Attention in bf16 with larger heads than d12's and d48's 64, by this package's kernels, forward and backward, as shares of MATMUL_RATE:
# dev/bench/2026-11-22-h200-attention/heads.txt. cuDNN, where it is installed, is faster.
LARGER_HEADS = {80: (0.257, 0.207), 128: (0.288, 0.217)}

# Tokens a second on one card, which also counts the gaps between kernels and that a card's clock falls during a long run: model, B, tokens
# a step, speed. 2026-11-28, README.md and dev/bench/README.md.
SPEEDS = {
    ("h200", "bf16"): (("d12", 64, 524288, 607e3), ("d48", 16, 65536, 53.6e3)),
    ("h100", "bf16"): (("d12", 64, 524288, 601e3), ("d48", 16, 65536, 53.7e3)),
    ("h200", "fp32"): (("d12", 16, 131072, 234e3),),
}
SPEEDS_DATE = "2026-11-28"

# The time of a step in fp8 as a share of that in bf16, by WIDTHS: d12, B=64, 131,072 tokens a step, and d48, B=16, 65,536, in turns on one
# H200, 2026-11-29: dev/bench/2026-11-29-h200-fp8.
FLOAT8_TIME = 0.882, 0.729

# Milliseconds that a launch takes however little it does, until its first blocks have begun and after most of its last ones have ended. Fitted
# to 12 runs of small models and small micro-batches on one H200, whose steps then come out within 7 %; without it, up to 44 % too short:
# dev/bench/2026-11-22-h200-small-micro-batches, 2026-11-22-h200-start and 2026-11-28-h200-built-in.
LAUNCH_MS = 0.007

# GiB of a GPU's memory in use beyond the arena: CUDA, the kernels, cuBLASLt, and with several GPUs NCCL. H200s, 2026-11-22, all runs of
# dev/bench/2026-11-22-h200x4-scaling, -d48 and -small-micro-batches: 1.15 to 1.16 and 1.99 to 2.11.
OUTSIDE_GIB = 1.16
OUTSIDE_GIB_NCCL = 2.11

# The sequence length and the gelu_fusion (-ge) of SHARES and SPEEDS.
MEASURED_T = 1024
MEASURED_FUSION = {"bf16": 2, "fp32": 0}
