"""What was measured of this program, for predictions: shares of the limits, speeds, the time of a launch, memory outside the arena.

Each table names its measurement, a folder of dev/bench (tests/test_plan.py compares them), the card and the date.
"""

# The limits, one H200, 2026-11-29, sustained for two seconds: dev/bench/2026-11-29-h200-ruler-d12 and -fp32.
LIMITS_CARD = "h200"
COPY_RATE = 4.185e12  # bytes a second, read plus written
MATMUL_RATE = {"bf16": 689.2e12, "fp32": 348.8e12}  # FLOP a second; fp32: with TF32

# Share of its limit that each part of a step reaches in the step. bf16: d12 (768 channels, B=64) and d48 (1,600 channels, B=16), T=1024;
# fp32: d12, B=16, with TF32. The same card and day: dev/bench/2026-11-29-h200-ruler-d12, -d48, -fp32.
WIDTHS = 768, 1600
SHARES = {
    "bf16": {
        "encoder_forward": (0.898, 0.923), "layernorm_forward": (0.902, 0.712), "residual_layernorm_forward": (0.978, 0.953),
        "matmul_forward qkv": (0.885, 0.951), "attention_forward": (0.398, 0.385), "matmul_forward attproj": (0.944, 0.958),
        "matmul_gelu_forward fc": (0.743, 0.938), "matmul_forward fcproj": (1.045, 1.012), "matmul_forward classifier": (1.108, 1.056),
        "classifier_forward_backward": (0.898, 0.904), "matmul_backward classifier": (1.074, 1.022),
        "layernorm_backward": (0.887, 0.678), "matmul_backward fcproj": (0.818, 0.938), "matmul_backward fc": (0.894, 0.931),
        "matmul_backward attproj": (0.899, 0.922), "attention_backward": (0.353, 0.341), "matmul_backward qkv": (0.924, 0.968),
        "encoder_backward": (0.674, 0.543), "zero": (0.820, 1.072), "sum_of_squares": (0.965, 1.073), "adamw_update": (0.974, 0.973),
    },
    "fp32": {
        "encoder_forward": (0.808,), "layernorm_forward": (0.736,), "residual_layernorm_forward": (0.774,), "matmul_forward qkv": (0.955,),
        "attention_forward": (0.242,), "matmul_forward attproj": (0.845,), "matmul_forward fc": (0.984,), "gelu_forward": (0.757,),
        "matmul_forward fcproj": (0.985,), "matmul_forward classifier": (1.098,), "classifier_forward_backward": (0.701,),
        "matmul_backward classifier": (0.820,), "layernorm_backward": (0.574,), "matmul_backward fcproj": (0.642,),
        "gelu_backward": (0.700,), "matmul_backward fc": (0.667,), "matmul_backward attproj": (0.473,), "attention_backward": (0.185,),
        "matmul_backward qkv": (0.653,), "encoder_backward": (0.692,), "zero": (0.772,), "sum_of_squares": (1.025,), "adamw_update": (0.985,),
    },
}  # fmt: skip
# Parts that these steps do not have. GELU by itself in bf16: dev/bench/2026-11-28-h200-kernel-sets/ladder.txt. The products next to it:
# as those of qkv in bf16, and as without the GELU in fp32.
OTHER_SHARES = {
    "bf16": {"gelu_forward": (0.922,), "gelu_backward": (0.973,), "matmul_forward fc": (0.885, 0.951)},
    "fp32": {"matmul_gelu_forward fc": (0.984,)},
}
# Attention in bf16 with larger heads than d12's and d48's 64, by this package's kernels, forward and backward, as shares of MATMUL_RATE:
# dev/bench/2026-11-22-h200-attention/heads.txt. cuDNN, where it is installed, is faster.
LARGER_HEADS = {80: (0.262, 0.211), 128: (0.293, 0.221)}

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
