"""The exercises of chapter 05: GELU."""

EXERCISES = ("silu_backward", "gelu_forward", "silent_float64", "wide", "gelu_backward")
