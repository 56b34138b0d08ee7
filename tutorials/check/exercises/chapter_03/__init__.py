"""The exercises of chapter 03, LayerNorm."""

EXERCISES = ("layernorm_backward_numpy", "layernorm_forward", "read_once", "layernorm_backward", "same_bits", "rmsnorm")
